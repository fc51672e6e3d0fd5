"""How a contender tells how far it is; see measure.go."""

import sys


def first():
    print("first", flush=True)


def done(n):
    print("done", n, flush=True)
    sys.stdin.read()  # until the other side has read what was used so far
