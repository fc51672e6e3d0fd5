// Package redisdial connects an example program to Redis, or says in one line why it
// cannot.
package redisdial

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/sink/redis"
)

// answerTime bounds Connect. A program promises to fail within 5 seconds.
const answerTime = 4 * time.Second

// Default and Usage are those of the flag -redis.
const (
	Default = "localhost:6379"
	Usage   = "`addresses` of Redis, separated by commas: a server, or some of a cluster's nodes; or redis://user:password@host:port, rediss:// with TLS"
)

// Flag declares the flag -redis: addresses, or a URL where a login or TLS is needed.
func Flag() *rueidis.ClientOption { return program.Flag("redis", Default, Usage, Parse) }

// NoCache declares the flag -redis-no-cache.
func NoCache() *bool {
	return flag.Bool("redis-no-cache", false, "do not cache in this process what was read from Redis; for servers without client-side caching")
}

// Parse reads addresses, separated by commas, or a URL.
func Parse(s string) (rueidis.ClientOption, error) {
	if !strings.Contains(s, "://") {
		list, err := program.Addresses(s)
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

// Connect returns a client once a server has answered. The caller closes it.
func Connect(ctx context.Context, option rueidis.ClientOption) (rueidis.Client, error) {
	option.Dialer = net.Dialer{Timeout: 3 * time.Second}
	option.DialCtxFn = redis.Dial
	option.ClientName = "clickstream"

	bounded, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var client rueidis.Client
	done := make(chan error, 1)
	// NewClient takes no context, and waits long for a server that accepts a
	// connection and says nothing. The process ends if it is left behind.
	go func() {
		fresh, err := rueidis.NewClient(option)
		if err == nil {
			if err = fresh.Do(bounded, fresh.B().Ping().Build()).Error(); err != nil {
				fresh.Close()
			}
		}
		client = fresh
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-bounded.Done():
		err = bounded.Err()
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("no answer within %v", answerTime)
	case hungUp(err):
		err = fmt.Errorf("%w (%s)", err, hint(option))
	}
	if err != nil {
		return nil, fmt.Errorf("redis %s: %w", strings.Join(option.InitAddress, ","), err)
	}
	return client, nil
}

// hungUp reports whether a server refused TLS, or closed the connection without an
// answer, as some do instead.
func hungUp(err error) bool {
	alert := new(net.OpError)
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		errors.As(err, &alert) && alert.Op == "remote error"
}

// hint names the usual reason for which a server hangs up.
func hint(option rueidis.ClientOption) string {
	if option.TLSConfig == nil {
		return "does it want TLS, as rediss:// asks for?"
	}
	return "does it want no TLS, or a certificate of the client?"
}
