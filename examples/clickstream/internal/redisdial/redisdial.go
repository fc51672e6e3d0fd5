// Package redisdial connects the example programs to Redis, or says in one line
// why it cannot.
package redisdial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"
	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
)

// answerTime is how long a server may take to answer: who waits for a program
// to start wants to know within 5 seconds.
const answerTime = 4 * time.Second

// Flag declares the flag -redis. It takes addresses, or, where a server wants
// more than that, a URL.
func Flag(f *program.Flags) *rueidis.ClientOption {
	return program.Declare(f, "redis", "localhost:6379",
		"`addresses` of Redis, separated by commas: a server, or some of a cluster's nodes; or redis://user:password@host:port, rediss:// with TLS",
		parse)
}

func parse(s string) (rueidis.ClientOption, error) {
	if !strings.Contains(s, "://") {
		list, err := program.ParseAddresses(s)
		return rueidis.ClientOption{InitAddress: list}, err
	}
	o, err := rueidis.ParseURL(s)
	if err != nil {
		return o, errors.New("must be like redis://user:password@host:port")
	}
	if o.TLSConfig != nil {
		o.TLSConfig.ServerName = "" // each node of a cluster has its own
	}
	return o, nil
}

// Connect returns a client, which the caller closes, once a server has
// answered.
func Connect(ctx context.Context, option rueidis.ClientOption) (rueidis.Client, error) {
	option.Dialer = net.Dialer{Timeout: 3 * time.Second}
	option.ClientName = "clickstream"

	bounded, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	type result struct {
		client rueidis.Client
		err    error
	}
	done := make(chan result, 1)
	// NewClient takes no ctx, and waits long for a server that accepts
	// connections and says nothing. If it is given up the process ends.
	go func() {
		client, err := rueidis.NewClient(option)
		if err == nil {
			if err = client.Do(bounded, client.B().Ping().Build()).Error(); err != nil {
				client.Close()
			}
		}
		done <- result{client, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-bounded.Done():
		r.err = bounded.Err()
	}
	if ctx.Err() != nil {
		r.err = ctx.Err()
	} else if errors.Is(r.err, context.DeadlineExceeded) {
		r.err = fmt.Errorf("no answer within %v", answerTime)
	}
	if r.err != nil {
		if hungUp(r.err) {
			r.err = fmt.Errorf("%w (%s)", r.err, hint(option))
		}
		return nil, fmt.Errorf("redis %s: %w", strings.Join(option.InitAddress, ","), r.err)
	}
	return r.client, nil
}

// hungUp reports whether a server closed the connection instead of an answer,
// or refused TLS. It may do the first although it meant to say the second.
func hungUp(err error) bool {
	alert := new(net.OpError)
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &alert) && alert.Op == "remote error"
}

// hint says what servers hang up for.
func hint(option rueidis.ClientOption) string {
	if option.TLSConfig == nil {
		return "does it want TLS, as rediss:// asks for?"
	}
	return "does it want no TLS, or a certificate of the client?"
}
