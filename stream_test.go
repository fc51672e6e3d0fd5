package tumble_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// The tests of the pipeline are in files that are named after the one which they
// test. Each is of one rule, and fails when the rule is taken out. What several
// processes do together while all rules are needed is in internal/simulation.

// Short, for tests that are full of them.
var (
	t0    = faketest.T0
	at    = faketest.At
	quiet = faketest.Quiet
)

func TestCountsWhatAPlainLoopCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 1))
		topic := faketest.NewTopic("a", "b")
		topic.Rand = rng
		topic.Add("a", faketest.Several(rng, 5000, 0)...)
		topic.Add("b", faketest.Several(rng, 3000, 0)...)
		sink := faketest.NewStore(4)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink})
		require.NoError(t, <-p.Done)
		require.Equal(t, faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events, topic.Log("b").Events), sink.Counts())
		s := p.Stats()
		faketest.Balanced(t, s)
		require.EqualValues(t, 8000, s.Read)
		require.EqualValues(t, 8000, s.Counted)
		require.Zero(t, s.Increments)
		for i := range 4 {
			require.EqualValues(t, 5000, sink.Stored(i, "a").Offset)
		}
	})
}

func TestFatalErrors(t *testing.T) {
	t.Run("another definition at the start", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
			_, err := sink.Open(t.Context(), tumble.Definition{Window: tumble.Window{Size: time.Hour}})
			require.NoError(t, err)
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
			require.ErrorIs(t, <-p.Done, tumble.ErrDefinition)
		})
	})
	t.Run("another definition while running", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: redefined{sink, tumble.ErrDefinition}})
			time.Sleep(time.Second)
			topic.Add("a", at(0, "x"))
			require.ErrorIs(t, <-p.Done, tumble.ErrDefinition)
		})
	})
	t.Run("a sum that is too large", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: redefined{sink, tumble.ErrOverflow}})
			time.Sleep(time.Second)
			topic.Add("a", at(0, "x"))
			require.ErrorIs(t, <-p.Done, tumble.ErrOverflow)
		})
	})
	t.Run("a sum that is too large in the last flush", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: redefined{sink, tumble.ErrOverflow}, FlushInterval: time.Minute})
			time.Sleep(time.Second)
			topic.Add("a", at(0, "x"))
			time.Sleep(time.Second)
			require.ErrorIs(t, p.Stop(), tumble.ErrOverflow)
		})
	})
	t.Run("a source that lists nothing it can", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := faketest.Start(t, tumble.Config{Source: brokenSource{}, Sink: faketest.NewStore(1)})
			require.ErrorIs(t, <-p.Done, faketest.ErrFault)
		})
	})
	t.Run("offsets that go back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
			topic.Add("a", at(0, "x"), at(1, "x"))
			topic.Log("a").Events[0].Offset = 5
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
			require.ErrorContains(t, <-p.Done, "the source returned offset 5 in a chunk from 0 to 2")
		})
	})
	t.Run("two runs at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: faketest.NewTopic("a")}, Sink: faketest.NewStore(1)})
			synctest.Wait()
			require.ErrorContains(t, p.Run(t.Context()), "running already")
			require.NoError(t, p.Stop())
		})
	})
}

// redefined is a sink whose Applies end with an error that cannot be mended.
type redefined struct {
	*faketest.Store
	err error
}

func (r redefined) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := r.Store.Open(ctx, def)
	return []tumble.Shard{redefinedShard{shards[0], r.err}}, err
}

type redefinedShard struct {
	tumble.Shard
	err error
}

func (r redefinedShard) Apply(context.Context, tumble.Batch) error {
	return fmt.Errorf("shard 0: %w", r.err)
}

type brokenSource struct{ tumble.Source }

func (brokenSource) Partitions(context.Context, map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	return nil, faketest.ErrFault
}

func TestRetentionMayDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		cfg := tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, Retention: time.Minute}
		require.NoError(t, faketest.Start(t, cfg).Ends())
		cfg.Retention = 0
		require.NoError(t, faketest.Start(t, cfg).Ends())
		cfg.Grace = time.Second
		err := faketest.Start(t, cfg).Ends()
		require.ErrorIs(t, err, tumble.ErrDefinition)
		var differs *tumble.DefinitionError
		require.ErrorAs(t, err, &differs)
		require.Equal(t, time.Second, differs.Wanted.Grace)
		require.Zero(t, differs.Stored.Grace)
		require.ErrorContains(t, err, ": stored is grace 0s, wanted grace 1s (under a new name, with a new consumer group, everything is counted from the log)")
	})
}

// A source that is stopped before anything began may hold events all the same: it
// is run, and tells.
func TestASourceTellsWhatIsLostThoughNothingBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := faketest.NewStore(1)
		sink.SetFault(func(int, *tumble.Batch) faketest.Fault { return faketest.Refused })
		p := faketest.Start(t, tumble.Config{Source: forgetful{&faketest.Source{Topic: faketest.NewTopic("a")}}, Sink: sink})
		time.Sleep(time.Second)
		require.ErrorIs(t, p.Stop(), faketest.ErrFault)
	})
}

// forgetful loses events whenever it is stopped.
type forgetful struct{ *faketest.Source }

func (f forgetful) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	if err := f.Source.Run(ctx, consume); err != nil {
		return err
	}
	return faketest.ErrFault
}

// A source whose partitions are shared out by a group is told where the sink
// counts.
func TestASharerIsToldTheIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &sharer{Source: &faketest.Source{Topic: faketest.NewTopic("a"), UntilEnd: true}}
		require.NoError(t, faketest.Start(t, tumble.Config{Source: source, Sink: named{faketest.NewStore(1)}}).Ends())
		require.Equal(t, "clicks", source.told.Name)
		source.told = tumble.Identity{}
		require.NoError(t, faketest.Start(t, tumble.Config{Source: source, Sink: faketest.NewStore(1)}).Ends())
		require.Equal(t, tumble.Identity{}, source.told, "this sink has none")
	})
}

type sharer struct {
	*faketest.Source
	ask  func(context.Context) (tumble.Identity, error)
	told tumble.Identity
}

func (s *sharer) Share(identity func(context.Context) (tumble.Identity, error)) { s.ask = identity }

func (s *sharer) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (all map[string]tumble.Checkpoint, err error) {
	if s.ask != nil {
		s.told, err = s.ask(ctx)
		s.ask = nil
	}
	if err != nil {
		return nil, err
	}
	return s.Source.Partitions(ctx, stored)
}

type named struct{ *faketest.Store }

func (n named) Identity(context.Context) (tumble.Identity, error) {
	return tumble.Identity{Name: "clicks", Definition: n.Def()}, nil
}

func TestNewNamesTheField(t *testing.T) {
	good := tumble.Config{Source: &faketest.Source{}, Sink: faketest.NewStore(1), Window: tumble.Window{Size: time.Minute}}
	for want, spoil := range map[string]func(*tumble.Config){
		"Source is nil":         func(c *tumble.Config) { c.Source = nil },
		"Sink is nil":           func(c *tumble.Config) { c.Sink = nil },
		"Window.Size is 0s":     func(c *tumble.Config) { c.Window.Size = 0 },
		"Grace is -1s":          func(c *tumble.Config) { c.Grace = -time.Second },
		"Retention is -1s":      func(c *tumble.Config) { c.Retention = -time.Second },
		"MaxPending is -1":      func(c *tumble.Config) { c.MaxPending = -1 },
		"MaxAhead is -1s":       func(c *tumble.Config) { c.MaxAhead = -time.Second },
		"FlushInterval is -1s":  func(c *tumble.Config) { c.FlushInterval = -time.Second },
		"ShutdownTimeout is -1": func(c *tumble.Config) { c.ShutdownTimeout = -time.Second },
	} {
		cfg := good
		spoil(&cfg)
		_, err := tumble.New(cfg)
		require.ErrorContains(t, err, want)
	}
	_, err := tumble.New(good)
	require.NoError(t, err)
}
