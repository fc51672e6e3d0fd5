//go:build servers

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/sink/redis"
)

// One stream is counted into memory and into Redis, and both are asked one table of
// questions: whatever a dashboard, a bill or a model may ask, the answers are the same.
func TestAnswersAreAlike(t *testing.T) {
	client := connect(t, addresses("TUMBLE_REDIS", "localhost:6379"))
	minute, hour := tumble.Window{Size: time.Minute}, tumble.Window{Size: time.Hour}
	day := tumble.Window{Calendar: tumble.Day, Zone: time.UTC}
	for name, def := range map[string]tumble.Definition{
		"counts":          {Window: minute},
		"sums":            {Window: minute, Sum: true, Grace: 10 * time.Second},
		"roll-ups":        {Window: minute, Rollups: []tumble.Rollup{{Window: hour}, {Window: day}}},
		"final":           {Window: minute, DropLate: true, Grace: 30 * time.Second},
		"final, expired":  {Window: minute, DropLate: true, Retention: 40 * time.Minute, Rollups: []tumble.Rollup{{Window: hour, Retention: 2 * time.Hour}, {Window: day}}},
		"final, roll-ups": {Window: minute, DropLate: true, Sum: true, Rollups: []tumble.Rollup{{Window: hour}}},
		"late, expired":   {Window: minute, Retention: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			topic := faketest.NewTopic("clicks/0", "clicks/1")
			rng := rand.New(rand.NewPCG(1, 2))
			for i := range 9000 {
				e := faketest.At(float64(i)*2+100*rng.Float64(), fmt.Sprintf("key-%02d", rng.IntN(40)))
				if def.Sum {
					e.N = rng.Int64N(100)
				}
				topic.Add([]string{"clicks/0", "clicks/1"}[i%2], e)
			}
			count := func(sink tumble.Sink) {
				p, err := tumble.New(tumble.Config{
					Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, Window: def.Window, Grace: def.Grace, Retention: def.Retention,
					DropLate: def.DropLate, Sum: def.Sum, Rollups: def.Rollups, Idle: -1, Logger: slog.New(slog.DiscardHandler),
				})
				require.NoError(t, err)
				require.NoError(t, p.Run(t.Context()))
			}
			one, two := memory.New(memory.Config{Shards: 3}), newSink(t, redis.Config{Client: client, Name: unique(t, client), Shards: 3})
			for _, q := range questions {
				require.Equal(t, q.ask(t.Context(), one, def), q.ask(t.Context(), two, def), "%s, of nothing", q.about)
			}
			// What of two partitions is dropped depends on how they interleave. One after
			// the other they do it alike.
			count(one)
			count(two)
			for _, level := range def.Levels() {
				a, err := one.Rollup(level.Window)
				require.NoError(t, err)
				b, err := two.Rollup(level.Window)
				require.NoError(t, err)
				for _, q := range questions {
					want, got := q.ask(t.Context(), a, def), q.ask(t.Context(), b, def)
					require.Equal(t, want, got, "%s, of windows of %v", q.about, level.Window)
					if strings.HasPrefix(q.about, "error") {
						require.Contains(t, want, "error", q.about)
					}
				}
			}
		})
	}
}

// A question is asked of a Reader, and its answer is put in words. Terms, and cursors of
// pages, are each store's own.
type question struct {
	about string
	ask   func(ctx context.Context, r tumble.Reader, def tumble.Definition) string
}

var questions = []question{
	{"the definition", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(r.Definition(ctx))
	}},
	{"a count", each(func(ctx context.Context, r tumble.Reader, at time.Time) string {
		return inWords(r.Count(ctx, "key-07", at))
	})},
	{"a key that nobody counted", each(func(ctx context.Context, r tumble.Reader, at time.Time) string {
		return inWords(r.Count(ctx, "nobody", at))
	})},
	{"an empty key", each(func(ctx context.Context, r tumble.Reader, at time.Time) string { return inWords(r.Count(ctx, "", at)) })},
	{"error: a time that is none", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		_, err := r.Count(ctx, "key-07", time.Time{})
		return inWords("", failing(err))
	}},
	{"many keys", each(func(ctx context.Context, r tumble.Reader, at time.Time) string {
		return inWords(r.Counts(ctx, at, "key-03", "nobody", "key-01", "key-03", "", "key-39"))
	})},
	{"no keys", each(func(ctx context.Context, r tumble.Reader, at time.Time) string { return inWords(r.Counts(ctx, at)) })},
	{"error: no keys, at a time that is none", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		_, err := r.Counts(ctx, time.Time{})
		return inWords("", failing(err))
	}},
	{"a range", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(r.Range(ctx, "key-11", clock(10), clock(290)))
	}},
	{"all of a key", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(r.Range(ctx, "key-11", time.Time{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)))
	}},
	{"a range from the end to the beginning", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(r.Range(ctx, "key-11", clock(50), clock(10)))
	}},
	{"a sum", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(tumble.Sum(ctx, r, "key-11", clock(240), clock(300)))
	}},
	{"a sum that begins past retention", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(tumble.Sum(ctx, r, "key-11", clock(0), clock(300)))
	}},
	{"a sum of what is open", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(tumble.Sum(ctx, r, "key-11", clock(290), clock(400)))
	}},
	{"error: a sum of nothing", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		_, err := tumble.Sum(ctx, r, "key-11", clock(20), clock(20))
		return inWords("", failing(err))
	}},
	{"a history", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		counts, sum, err := tumble.History(ctx, r, "key-11", clock(280), clock(310))
		return inWords([]any{counts, sum}, err)
	}},
	{"totals", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(r.Windows(ctx, clock(0), clock(400)))
	}},
	{"all totals", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(r.Windows(ctx, time.Time{}, time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)))
	}},
	{"totals from the end to the beginning", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(r.Windows(ctx, clock(50), clock(10)))
	}},
	{"the highest", each(func(ctx context.Context, r tumble.Reader, at time.Time) string { return inWords(r.Top(ctx, at, 5)) })},
	{"more of the highest than there are", each(func(ctx context.Context, r tumble.Reader, at time.Time) string { return inWords(r.Top(ctx, at, 1000)) })},
	{"everything", each(func(ctx context.Context, r tumble.Reader, at time.Time) string {
		return together(tumble.All(ctx, r, at))
	})},
	{"pages", each(pages)},
	{"error: a page of another place", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		_, err := r.Scan(ctx, clock(100), "no cursor", 10)
		return inWords("", failing(err))
	}},
	{"progress", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		return inWords(r.Progress(ctx))
	}},
	{"to wait for what is there", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		return inWords("", tumble.Await(ctx, r, "clicks/1", "log-1", 100))
	}},
	{"to wait for another log", func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		return inWords("", tumble.Await(ctx, r, "clicks/1", "log-2", 100))
	}},
	{"final windows", follow(tumble.Finals, "")},
	{"closed windows", follow(tumble.ClosedWindows, "")},
	{"error: final windows behind no cursor", follow(tumble.Finals, "no cursor")},
}

// clock returns a time so many minutes after the stream began.
func clock(minutes int) time.Time { return faketest.T0.Add(time.Duration(minutes) * time.Minute) }

// each asks about windows that are past retention, closed, open and yet to come, and
// about times in the midst of one.
func each(ask func(ctx context.Context, r tumble.Reader, at time.Time) string) func(context.Context, tumble.Reader, tumble.Definition) string {
	return func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		var all []string
		for _, m := range []int{-5000, 0, 1, 60, 200, 255, 270, 297, 299, 300, 301, 1000} {
			all = append(all, fmt.Sprint(m, ": ", ask(ctx, r, clock(m).Add(17*time.Second))))
		}
		return strings.Join(all, "\n")
	}
}

// pages reads all pages of a window, whose counts come in no order.
func pages(ctx context.Context, r tumble.Reader, at time.Time) string {
	var all []tumble.Count
	cursor := ""
	for {
		page, err := r.Scan(ctx, at, cursor, 7)
		if err != nil {
			return inWords("", err)
		}
		all = append(all, page.Counts...)
		if cursor = page.Cursor; cursor == "" {
			return inWords(sorted(all), nil)
		}
	}
}

// together collects a sequence that comes in no order.
func together(seq iter.Seq2[tumble.Count, error]) string {
	var all []tumble.Count
	for c, err := range seq {
		if err != nil {
			return inWords("", err)
		}
		all = append(all, c)
	}
	return inWords(sorted(all), nil)
}

func sorted(all []tumble.Count) []tumble.Count {
	slices.SortFunc(all, func(a, b tumble.Count) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// follow collects what is handed on, until nothing more comes.
func follow(seq func(context.Context, tumble.Reader, string) iter.Seq2[tumble.Total, error], cursor string) func(context.Context, tumble.Reader, tumble.Definition) string {
	return func(ctx context.Context, r tumble.Reader, _ tumble.Definition) string {
		ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		var all []tumble.Total
		for total, err := range seq(ctx, r, cursor) {
			if err != nil {
				return inWords(all, failing(err))
			}
			all = append(all, total)
		}
		return inWords(all, nil)
	}
}

// kinds of errors that both stores are to agree on.
var kinds = []error{tumble.ErrNoDefinition, tumble.ErrNoRollup, tumble.ErrCursor, tumble.ErrNotFinal, tumble.ErrChanged, context.DeadlineExceeded}

// failing puts an error in words, by its kind where it has one.
func failing(err error) error {
	if i := slices.IndexFunc(kinds, func(kind error) bool { return errors.Is(err, kind) }); i >= 0 {
		return kinds[i]
	}
	if err != nil {
		return errors.New("of no kind")
	}
	return nil
}

// inWords puts an answer in words, without terms and cursors.
func inWords(answer any, err error) string {
	if err != nil {
		return fmt.Sprintf("%+v, error %v", plain(answer), failing(err))
	}
	return fmt.Sprintf("%+v", plain(answer))
}

func plain(answer any) any {
	switch a := answer.(type) {
	case tumble.Count:
		a.Term, a.Start, a.End = 0, a.Start.UTC(), a.End.UTC()
		return a
	case []tumble.Count:
		all := []any{}
		for _, c := range a {
			all = append(all, plain(c))
		}
		return all
	case tumble.Page:
		a.Term, a.Cursor, a.Start, a.End = 0, "", a.Start.UTC(), a.End.UTC()
		counts := plain(a.Counts)
		a.Counts = nil
		return []any{a, counts}
	case []tumble.Total:
		all := []any{}
		for _, t := range a {
			t.Term, t.Cursor, t.Start, t.End = 0, "", t.Start.UTC(), t.End.UTC()
			all = append(all, t)
		}
		return all
	case tumble.Progress:
		a.Frontier = a.Frontier.UTC()
		for i := range a.Partitions {
			a.Partitions[i].Watermark = a.Partitions[i].Watermark.UTC()
		}
		return a
	case []any:
		all := []any{}
		for _, one := range a {
			all = append(all, plain(one))
		}
		return all
	}
	return answer
}
