package redis

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/redis/rueidis"
)

// denied reports whether the server knows the command and does not let this
// user call it, or has it renamed away. The client takes the word ERR from the
// beginning of an answer.
func denied(reply string) bool {
	return strings.HasPrefix(reply, "NOPERM") || strings.HasPrefix(strings.TrimPrefix(reply, "ERR "), "unknown command")
}

// explain adds to an error who did not answer, or a hint for the person who reads
// the server's answer.
func (s *Sink) explain(ctx context.Context, err error) error {
	if _, ok := rueidis.IsRedisErr(err); ok {
		return hinted(err)
	}
	if err = hinted(err); unanswered(err) {
		err = s.named(err)
	}
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// named adds the servers' addresses to an error that names none.
func (s *Sink) named(err error) error {
	addrs := slices.Sorted(maps.Keys(s.client.Nodes()))
	text := err.Error()
	if slices.ContainsFunc(addrs, func(addr string) bool { return strings.Contains(text, addr) }) {
		return err
	}
	return fmt.Errorf("no answer from %s: %w", strings.Join(addrs, ", "), err)
}

// unanswered reports whether err is about a connection, not an answer. Many of
// these errors, such as the bare EOF of a connection that a server closed, do
// not say with whom it was.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, rueidis.ErrDoCacheAborted) || errors.Is(err, rueidis.ErrClosing) ||
		errors.As(err, new(net.Error)) || errors.As(err, new(*tls.CertificateVerificationError))
}

// hinted adds a hint for the person who reads the server's answer.
func hinted(err error) error {
	if errors.Is(err, rueidis.ErrDoCacheAborted) {
		return fmt.Errorf("the user may not run MULTI, EXEC or PTTL, or the connection broke: %w", err)
	}
	if reply, ok := rueidis.IsRedisErr(err); ok {
		text := reply.Error()
		for word, hint := range hints {
			if strings.Contains(text, word) {
				return fmt.Errorf("%s: %w", hint, err)
			}
		}
	}
	return err
}

// hints by the word that an error of the server holds. Before version 7 it need
// not be the first one, when a script meets the error.
var hints = map[string]string{
	"OOM ":                                "the server has reached its maxmemory",
	"READONLY ":                           "the server is a replica",
	"NOAUTH ":                             "the client gives no password",
	"WRONGPASS ":                          "the client gives a wrong user name or password",
	"NOPERM ":                             "the user may not do that",
	"The user executing the script can't": "the user may not run a command of the script",
	"MISCONF ":                            "the server cannot save to its disk and takes no writes",
	"NOREPLICAS ":                         "the server has too few replicas and takes no writes",
	"LOADING ":                            "the server is loading its data",
	"BUSY ":                               "the server is busy with a script",
	"CLUSTERDOWN ":                        "the cluster does not serve all slots",
	"WRONGTYPE ":                          "a key under this name holds something else",
}
