package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
)

// python is an interpreter with the packages of requirements.txt, in the user's
// cache; it is made once.
var python = sync.OnceValues(func() (string, error) {
	root, err := repository()
	if err != nil {
		return "", err
	}
	wanted, err := os.ReadFile(filepath.Join(root, "bench", "python", "requirements.txt"))
	if err != nil {
		return "", err
	}
	dir, err := cacheDir("python")
	if err != nil {
		return "", err
	}
	interpreter := filepath.Join(dir, "bin", "python")
	mark := filepath.Join(dir, "requirements.txt") // of what is installed
	if have, err := os.ReadFile(mark); err == nil && string(have) == string(wanted) {
		return interpreter, nil
	}
	if out, err := exec.Command(filepath.Join(root, "scripts", "install"), "python3=python3,python3-venv").CombinedOutput(); err != nil {
		return "", fmt.Errorf("there is no python3: %w\n%s", err, out)
	}
	fmt.Fprintln(os.Stderr, "bench: installing Python packages")
	if out, err := exec.Command("python3", "-m", "venv", "--clear", dir).CombinedOutput(); err != nil {
		return "", fmt.Errorf("python3 -m venv: %w\n%s", err, out)
	}
	install := exec.Command(interpreter, "-m", "pip", "install", "-q", "-r", filepath.Join(root, "bench", "python", "requirements.txt"))
	if out, err := install.CombinedOutput(); err != nil {
		return "", fmt.Errorf("pip install: %w\n%s", err, out)
	}
	return interpreter, os.WriteFile(mark, wanted, 0o644)
})

func pythonMissing() string {
	if _, err := python(); err != nil {
		return firstLine(err)
	}
	return ""
}

// script returns the command of a contender in the folder python.
func script(name string) func(context.Context, job) (*exec.Cmd, error) {
	return func(ctx context.Context, j job) (*exec.Cmd, error) {
		interpreter, err := python()
		if err != nil {
			return nil, err
		}
		root, err := repository()
		if err != nil {
			return nil, err
		}
		return exec.CommandContext(ctx, interpreter, filepath.Join(root, "bench", "python", name),
			j.kafka, j.redis, j.topic.name(), j.group, strconv.Itoa(j.topic.n)), nil
	}
}

// batchEngine returns the command of a program that groups the clicks from a file,
// which is written first and still in the page cache when it is read.
func batchEngine(name string) func(context.Context, job) (*exec.Cmd, error) {
	return func(ctx context.Context, j job) (*exec.Cmd, error) {
		path := filepath.Join(j.scratch, "clicks.ndjson")
		if err := j.topic.writeLines(path); err != nil {
			return nil, err
		}
		interpreter, err := python()
		if err != nil {
			return nil, err
		}
		root, err := repository()
		if err != nil {
			return nil, err
		}
		return exec.CommandContext(ctx, interpreter, filepath.Join(root, "bench", "python", "file.py"), name, path, strconv.Itoa(j.topic.n)), nil
	}
}

// kcat reads every record and prints a byte for it.
func kcat(ctx context.Context, j job) (*exec.Cmd, error) {
	return exec.CommandContext(ctx, "kcat", "-b", j.kafka, "-C", "-t", j.topic.name(), "-o", "beginning", "-e", "-q", "-f", "."), nil
}

func kcatMissing() string {
	if _, err := exec.LookPath("kcat"); err != nil {
		return "there is no kcat"
	}
	return ""
}
