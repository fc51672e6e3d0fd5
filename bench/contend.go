package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime/pprof"
	"strconv"
	"time"
)

// A contender is one way to count the clicks, or only to read them.
type contender struct {
	name, about string
	kinds       []string // of topics that it reads
	share       int      // it reads one in share of the clicks; the slow ones would take hours
	missing     func() string
	command     func(context.Context, job) (*exec.Cmd, error)
	dots        bool                                          // it is no program of ours, and prints a byte for each record
	own         bool                                          // it keeps its counts itself and tells them
	counts      func(context.Context, *servers, *tally) error // reads its counts from Redis
}

func contenders() []contender {
	all := []contender{
		{name: "tumble", about: "this library: source/kafka, sink/redis, exactly once",
			kinds: kinds, share: 1, counts: countsOfTumble},
		{name: "franz-go-poll", about: "franz-go, poll only",
			kinds: kinds, share: 1},
		{name: "franz-go-loop", about: "franz-go, encoding/json, map, INCRBY pipelined every 100 ms, at least once",
			kinds: kinds, share: 1, counts: countsOfStrings},
		{name: "kafka-go-incr", about: "kafka-go's Reader, encoding/json, INCR a message",
			kinds: kinds[:1], share: 40, counts: countsOfStrings},
		{name: "python-incr", about: "the tutorial's consumer: confluent-kafka, redis-py, INCR a message",
			kinds: kinds[:1], share: 40, counts: countsOfStrings, missing: pythonMissing, command: script("consumer.py")},
		{name: "python-batches", about: "the same in batches of 1,000, added up, INCRBY pipelined",
			kinds: kinds[:1], share: 10, counts: countsOfStrings, missing: pythonMissing, command: script("batches.py")},
		{name: "streams", about: "Kafka Streams: exactly_once_v2, RocksDB, 1-minute windows with 10 s of grace; counts stay in its own store",
			kinds: kinds[:1], share: 1, missing: javaMissing("streams"), command: java("streams"), own: true},
		{name: "flink", about: "Flink in one process: exactly once, checkpoints every second, state on the heap; counts are not written anywhere",
			kinds: kinds[:1], share: 1, missing: javaMissing("flink"), command: java("flink"), own: true},
		{name: "duckdb", about: "DuckDB in memory, two threads, groups the lines of a file: no Kafka, no store, no guarantee",
			kinds: kinds[:1], share: 1, missing: pythonMissing, command: batchEngine("duckdb"), own: true},
		{name: "chdb", about: "chDB (ClickHouse) in memory, two threads, does the same",
			kinds: kinds[:1], share: 1, missing: pythonMissing, command: batchEngine("chdb"), own: true},
		{name: "kcat-poll", about: "kcat (librdkafka), poll only",
			kinds: kinds, share: 1, missing: kcatMissing, command: kcat, dots: true},
	}
	for i, c := range all {
		if c.command == nil {
			all[i].command = func(ctx context.Context, j job) (*exec.Cmd, error) {
				return self(ctx, "contend", "-kafka", j.kafka, "-redis", j.redis, "-topic", j.topic.name(),
					"-n", strconv.Itoa(j.topic.n), "-group", j.group, "-profile", j.profile, c.name)
			}
		}
	}
	return all
}

// parts are the contenders in this program.
var parts = map[string]func(context.Context, task) error{
	"tumble":        contendTumble,
	"franz-go-poll": contendPoll,
	"franz-go-loop": contendLoop,
	"kafka-go-incr": contendReader,
}

// A task is a job as a contender in this program gets it.
type task struct {
	kafka, redis, topic, group string // redis: one or several of a cluster, separated by commas
	n                          int

	// Of tumble alone.
	grace, flush, window time.Duration
	shards               int
	follow               bool // go on at the end of the topic
}

// contend runs one contender of this program.
func contend(ctx context.Context, args []string) (err error) {
	var t task
	f := flag.NewFlagSet("contend", flag.ExitOnError)
	f.StringVar(&t.kafka, "kafka", "", "`address`")
	f.StringVar(&t.redis, "redis", "", "`address`")
	f.StringVar(&t.topic, "topic", "", "`name`")
	f.StringVar(&t.group, "group", "", "`name`")
	f.IntVar(&t.n, "n", 0, "`number` of records in the topic")
	f.DurationVar(&t.grace, "grace", 0, "tumble's Grace")
	f.DurationVar(&t.flush, "flush", 0, "tumble's FlushInterval; 0: its default")
	f.DurationVar(&t.window, "window", time.Minute, "tumble's Window")
	f.IntVar(&t.shards, "shards", 0, "`number` of shards; 0: the default")
	f.BoolVar(&t.follow, "follow", false, "go on at the end of the topic until interrupted")
	profile := f.String("profile", "", "`file` for a CPU profile")
	if err := f.Parse(args); err != nil {
		return err
	}
	slog.SetLogLoggerLevel(slog.LevelWarn)
	run, ok := parts[f.Arg(0)]
	if !ok || f.NArg() != 1 {
		return fmt.Errorf("no contender %q", f.Args())
	}
	if *profile != "" {
		file, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	return run(ctx, t)
}
