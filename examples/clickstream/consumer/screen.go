package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// eraseLine moves to the beginning of a terminal's line and clears it.
const eraseLine = "\r\x1b[K"

// A screen shows lines, above a status line if it is a terminal. It is safe for
// concurrent use.
type screen struct {
	terminal bool

	mu     sync.Mutex
	out    io.Writer
	status string
}

func newScreen(f *os.File) *screen {
	info, err := f.Stat()
	return &screen{terminal: err == nil && info.Mode()&os.ModeCharDevice != 0, out: f}
}

// Write expects whole lines.
func (s *screen) Write(lines []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status == "" {
		return s.out.Write(lines)
	}
	if _, err := fmt.Fprintf(s.out, "%s%s%s", eraseLine, lines, s.status); err != nil {
		return 0, err
	}
	return len(lines), nil
}

func (s *screen) show(status string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if status != s.status {
		s.status = status
		fmt.Fprint(s.out, eraseLine+status)
	}
}

// progress shows how far counting has come, until it has caught up or ctx ends.
func (s *screen) progress(ctx context.Context, stats func() tumble.Stats) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	defer s.show("")
	var p progress
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			line, done := p.next(now, stats())
			if done {
				return
			}
			s.show(line)
		}
	}
}

// A progress is the distance that partitions have come since each was first seen.
type progress struct {
	first map[string]int64 // first offsets, by partition
	at    time.Time        // of the last call
	read  int64            // at that time
	rate  float64          // events per second, smoothed
}

// next returns the next status line, and whether every partition has caught up.
func (p *progress) next(now time.Time, s tumble.Stats) (line string, done bool) {
	if len(s.Partitions) == 0 {
		return "waiting for partitions", false
	}
	if p.first == nil {
		p.first = map[string]int64{}
	}
	var come, all int64
	done = true
	for _, one := range s.Partitions {
		first, ok := p.first[one.ID]
		if !ok {
			first = one.Offset
			p.first[one.ID] = first
		}
		done = done && one.CaughtUp
		if one.End > first {
			come += one.Offset - first
			all += one.End - first
		}
	}
	if !p.at.IsZero() {
		rate := float64(s.Read-p.read) / now.Sub(p.at).Seconds()
		if p.rate == 0 {
			p.rate = rate
		}
		p.rate += (rate - p.rate) / 4
	}
	p.at, p.read = now, s.Read
	if all == 0 {
		return "waiting for the log", done
	}
	line = fmt.Sprintf("%.1f%% of the log, %.0f events/s", 100*float64(come)/float64(all), p.rate)
	if p.rate > 0 {
		left := time.Duration(float64(all-come) / p.rate * float64(time.Second)).Round(time.Second)
		line += fmt.Sprintf(", %v left", left)
	}
	return line, done
}
