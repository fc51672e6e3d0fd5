package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// A writer counts some partitions of a trial's tape, in one pipeline after
// another. Each pipeline has a client of its own, as a process would.
type writer struct {
	trial  *trial
	number int
	source *tapeSource
	ends   string        // the partition, if that ends at times
	line   time.Duration // by how much its connections are delayed, at most

	mu     sync.Mutex
	stop   context.CancelFunc // nil: it does not run
	done   chan struct{}
	quick  bool // without a last flush
	starts int
}

// start starts a pipeline, unless one is running.
func (w *writer) start() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stop != nil {
		return nil
	}
	t := w.trial
	w.starts++
	w.quick = w.starts%2 == 0
	var client rueidis.Client
	err := eventually(context.Background(), healing, fmt.Sprintf("writer %d found no server", w.number), func(context.Context) (err error) {
		client, err = rueidis.NewClient(t.option(true, w.line))
		return err
	})
	if err != nil {
		return err
	}
	sink, err := redis.New(redis.Config{Client: client, Name: t.name, Shards: t.shards, Timeout: 3 * time.Second})
	if err != nil {
		client.Close()
		return err
	}
	cfg := tumble.Config{
		Source: w.source, Sink: sink,
		Window: t.def.Window, Grace: t.def.Grace, Retention: t.def.Retention, DropLate: t.def.DropLate,
		Idle: idleAfter, FlushInterval: 30 * time.Millisecond, Logger: t.logger,
	}
	if w.quick {
		// As a kill would: what is under way may arrive, and nothing after it.
		cfg.ShutdownTimeout = time.Millisecond
	}
	pipeline, err := tumble.New(cfg)
	if err != nil {
		client.Close()
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	w.stop, w.done = stop, make(chan struct{})
	go func(done chan struct{}) {
		defer close(done)
		defer client.Close()
		for ctx.Err() == nil {
			err := pipeline.Run(ctx)
			if ctx.Err() == nil {
				// It found no server when it started. A supervisor would do so too.
				t.logger.Warn("a writer ended by itself", "writer", w.number, "error", err)
				if err == nil || !strings.Contains(err.Error(), "open the sink") {
					t.fail(fmt.Errorf("writer %d ended by itself: %w", w.number, err))
				}
				time.Sleep(200 * time.Millisecond)
			}
			s := pipeline.Stats()
			t.logger.Info("a writer's books", "writer", w.number, "counted", s.Counted, "late", s.DroppedLate, "replayed", s.Replayed, "conflicts", s.Conflicts)
		}
	}(w.done)
	return nil
}

// end ends the pipeline that is running.
func (w *writer) end() {
	w.mu.Lock()
	stop, done := w.stop, w.done
	w.stop = nil
	w.mu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
}

// churn restarts writers and moves partitions between them until ctx ends. Now
// and then two hold the same.
func (t *trial) churn(ctx context.Context) {
	r := rand.New(rand.NewPCG(t.seed, 12))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(1000+r.IntN(4000)) * time.Millisecond):
		}
		w := t.writers[r.IntN(len(t.writers))]
		switch r.IntN(4) {
		case 0:
			w.end()
			if err := w.start(); err != nil {
				t.fail(err)
			}
		case 1:
			t.deal(r.IntN(len(t.writers)), true)
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
			t.deal(r.IntN(len(t.writers)), false)
		default:
			t.deal(r.IntN(len(t.writers)), false)
		}
	}
}

// deal shares the partitions out, beginning with one of the writers.
func (t *trial) deal(first int, twice bool) {
	t.mu.Lock()
	all := append([]string(nil), t.dealt...)
	t.turn = first
	t.mu.Unlock()
	for i, w := range t.writers {
		var holds []string
		for n, id := range all {
			at := (first + n) % len(t.writers)
			if at == i || twice && (at+1)%len(t.writers) == i {
				holds = append(holds, id)
			}
		}
		w.source.assign(all, holds)
	}
}

// A slowLine delays what is read from a connection, as a network does. Nothing
// overtakes anything.
type slowLine struct {
	net.Conn
	most time.Duration
}

func (l *slowLine) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	// Most are quick, so that much can be read, and some are not.
	u := rand.Float64()
	time.Sleep(time.Duration(u * u * u * float64(l.most)))
	return n, err
}

// slow makes the connections of a client slow ones.
func slow(o rueidis.ClientOption, most time.Duration) rueidis.ClientOption {
	if most == 0 {
		return o
	}
	o.DialCtxFn = func(ctx context.Context, address string, d *net.Dialer, _ *tls.Config) (net.Conn, error) {
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return &slowLine{c, most}, nil
	}
	return o
}

// logTo returns a logger that writes to a file, and what closes it.
func logTo(dir, name string) (*slog.Logger, func(), error) {
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return nil, nil, err
	}
	return slog.New(slog.NewTextHandler(f, nil)), func() { f.Close() }, nil
}
