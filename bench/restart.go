package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
)

// restart measures from the start of a consumer's process to the first new
// count, with many live windows in Redis.
func restart(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("restart", flag.ExitOnError)
	n := f.Int("n", 1_000_000, "`number` of clicks, each of about one live window")
	big := f.Bool("big", false, "the same as -n 10000000")
	times := f.Int("times", 5, "`number` of restarts")
	where := declareServers(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	if *big {
		*n = 10_000_000
	}
	up, err := where.start(ctx)
	if err != nil {
		return err
	}
	defer up.stop()
	empty, err := flush(ctx, up.db)
	if err != nil {
		return err
	}
	// As many users as clicks: hardly anybody clicks twice in a minute.
	t := topic{"plain", clicks{*n, *n, 1}, *n, partitions}
	if err := t.remake(ctx, up.kafka); err != nil {
		return err
	}
	group := fmt.Sprintf("restart-%d", time.Now().UnixNano())
	consumer := func(extra ...string) (*exec.Cmd, error) {
		// Windows stay live for two hours of event time.
		cmd, err := self(ctx, append(append([]string{"contend", "-kafka", up.kafka, "-redis", up.redis, "-topic", t.name(),
			"-group", group, "-grace", "2h"}, extra...), "tumble")...)
		if err == nil {
			cmd.Stderr = os.Stderr
		}
		return cmd, err
	}
	fill, err := consumer()
	if err != nil {
		return err
	}
	if err := fill.Run(); err != nil {
		return fmt.Errorf("filling: %w", err)
	}
	full, err := info(ctx, up.db)
	if err != nil {
		return err
	}
	reader, closeReader, err := readerOf(up.redis)
	if err != nil {
		return err
	}
	defer closeReader()
	live, err := liveWindows(ctx, reader)
	if err != nil {
		return err
	}
	fmt.Printf("%d live windows of keys in Redis, %.0f MB, %.1f bytes each\n", live, float64(full.memory-empty.memory)/1e6,
		float64(full.memory-empty.memory)/float64(live))

	client, err := kgo.NewClient(kgo.SeedBrokers(up.kafka), kgo.DefaultProduceTopic(t.name()), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer client.Close()
	var took []float64
	for i := range *times {
		user := userName(i)
		at := epoch.Add(minutes*time.Minute - time.Second)
		value := fmt.Appendf(nil, `{"user_id":%q,"timestamp":%q,"page":"/home"}`, user, at.Format(time.RFC3339))
		before, err := reader.Count(ctx, user, at)
		if err != nil {
			return err
		}
		if err := client.ProduceSync(ctx, &kgo.Record{Value: value, Partition: int32(i % t.parts), Timestamp: at}).FirstErr(); err != nil {
			return err
		}
		again, err := consumer("-follow")
		if err != nil {
			return err
		}
		start := time.Now()
		if err := again.Start(); err != nil {
			return err
		}
		for {
			c, err := reader.Count(ctx, user, at)
			if err == nil && c.N == before.N && time.Since(start) < time.Minute {
				time.Sleep(time.Millisecond)
				continue
			}
			took = append(took, time.Since(start).Seconds())
			if err == nil && c.N != before.N+1 {
				err = fmt.Errorf("count of %s is %d, must be %d", user, c.N, before.N+1)
			}
			_ = again.Process.Signal(os.Interrupt) // it ends, or Wait fails
			if waited := again.Wait(); err == nil {
				err = waited
			}
			if err != nil {
				return err
			}
			break
		}
	}
	fmt.Printf("restart to first count: %s s in %d restarts\n", spread(sorted(took)), len(took))
	return nil
}

// liveWindows is how many counts are stored, none of them of a closed window.
func liveWindows(ctx context.Context, reader tumble.Reader) (n int, err error) {
	for m := range minutes {
		for cursor := ""; ; {
			page, err := reader.Scan(ctx, epoch.Add(time.Duration(m)*time.Minute), cursor, 10_000)
			if err != nil {
				return n, err
			}
			if page.State != tumble.Open {
				return n, fmt.Errorf("minute %d is closed", m)
			}
			n += len(page.Counts)
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
	}
	return n, nil
}
