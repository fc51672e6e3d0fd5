package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/internal/redisdial"
	"github.com/tumblestream/tumble/sink/redis"
)

var (
	server   = redisdial.Flag()
	noCache  = redisdial.NoCache()
	name     = program.Flag("name", "clickstream", "`name` of the counts in Redis", program.Text)
	database = program.Flag("db", "finals.db", "`database` to write to: an SQLite file, or postgres://user:password@host/database", program.Text)
	window   = program.Flag("window", "", "`length` of the windows to export, such as 1h, one of those that are counted; empty: the finest", program.Level)
	closed   = flag.Bool("closed", false, "export windows once they are closed, for counts without -drop-late: an event that comes later still is not exported")
)

func main() {
	program.Main("export", "writes final windows into a database, each row exactly once.", run)
}

func run(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	server.DisableCache = *noCache
	client, err := redisdial.Connect(ctx, *server)
	if err != nil {
		return err
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: *name})
	if err != nil {
		return program.FlagError("name", err)
	}
	db, err := open(ctx, *database)
	if err != nil {
		return err
	}
	defer db.Close()
	e := &exporter{counts: counts, name: *name, window: *window, closed: *closed, db: db, log: log}
	err = e.run(ctx)
	fmt.Fprintf(os.Stderr, "export: %d windows, %d rows written to %s\n", e.windows, e.rows, db.name)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}
