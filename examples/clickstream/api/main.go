// Command api answers over HTTP how often users clicked, from the counts that the
// consumer keeps in Redis.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"time"
	_ "time/tzdata" // in a container there may be none

	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/internal/redisdial"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/web"
)

var (
	addr    = program.Flag("addr", "localhost:8000", "`address` to serve on", program.Address)
	server  = redisdial.Flag()
	noCache = redisdial.NoCache()
	name    = program.Flag("name", "clickstream", "`name` of the counts in Redis", program.Text)
)

func main() {
	program.Main("api", "answers over HTTP how often users clicked.", run)
}

func run(ctx context.Context) error {
	listener, err := program.Listen(*addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	server.DisableCache = *noCache
	// Requests that come together are sent to Redis together, for a fraction of the system
	// calls of both. Go run . reads, in bench, tells what it gives.
	server.MaxFlushDelay = 50 * time.Microsecond
	client, err := redisdial.Connect(ctx, *server)
	if err != nil {
		return err
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: *name})
	if err != nil {
		return program.FlagError("name", err)
	}
	// The heap is mostly the client's cache. To mark it costs more than requests do.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	fmt.Fprintf(os.Stderr, "api: serving %s on %s\n", *name, program.URL(listener, *addr))
	api, err := web.New(web.Config{Counts: counts})
	if err != nil {
		return err
	}
	return program.Serve(ctx, listener, api)
}
