// Command bench measures tumble beside what its users would pick instead, on a
// real Kafka and a real Redis, which it starts:
//
//	go run .                    the table: every contender, three rounds
//	go run . -only tumble,franz-go-poll -rounds 5
//	go run . COMMAND -h         what else it measures: run without a command for a list
//
// All contenders read the same records. Each runs alone, in a process of its
// own, and its counts are compared with those that the records were made from.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// A command is one thing to measure, or a part of it that needs a process of
// its own.
type command struct {
	name, about string
	run         func(ctx context.Context, args []string) error
	part        bool // of another command; not for people
}

func commands() []command {
	return []command{
		{name: "contest", about: "the table of all contenders; the default", run: contest},
		{name: "latency", about: "how long after an event is due its count can be read, at a fixed rate", run: latency},
		{name: "restart", about: "from the start of a process to its first count, with a million live windows in Redis", run: restart},
		{name: "reads", about: "reads a second and core of the HTTP API, beside the tutorial's", run: reads},
		{name: "growth", about: "what an event costs with more keys, partitions and processes", run: growth},
		{name: "steady", about: "what a process costs that holds many partitions with little on each", run: steady},
		{name: "memory", about: "what an increment takes that waits for a store that is away", run: memory},
		{name: "contend", about: "one contender, in a process of its own", run: contend, part: true},
		{name: "latency-channel", about: "the pipeline of latency -source channel", run: latencyChannel, part: true},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	name, args := "contest", os.Args[1:]
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		name, args = args[0], args[1:]
	}
	for _, c := range commands() {
		if c.name != name {
			continue
		}
		if err := c.run(ctx, args); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", name, err)
			os.Exit(1)
		}
		return
	}
	fmt.Fprintf(os.Stderr, "bench: there is no command %q; these are:\n", name)
	for _, c := range commands() {
		if !c.part {
			fmt.Fprintf(os.Stderr, "\t%-10s %s\n", c.name, c.about)
		}
	}
	os.Exit(2)
}
