package channel_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/channel"
	"github.com/tumblestream/tumble/source/sourcetest"
)

// newLog makes a log for the rules. Its channel is as large as the largest rule
// needs, for a rule writes before it reads.
func newLog(context.Context) (*sourcetest.Log, error) {
	events := make(chan tumble.Event, 10_000)
	s, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		return nil, err
	}
	return &sourcetest.Log{
		Source:     uncounted{s},
		Partitions: []string{"clicks"},
		Append: func(ctx context.Context, _ string, all ...tumble.Event) error {
			for _, e := range all {
				select {
				case events <- e:
				default:
					return errors.New("the channel is full")
				}
			}
			return nil
		},
		End: func(context.Context, string) error { close(events); return nil },
	}, nil
}

// uncounted is a source for rules that read and count nothing: at the end of a
// run everything would be lost, and is not missed.
type uncounted struct{ *channel.Source }

func (s uncounted) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	err := s.Source.Run(ctx, consume)
	if lost := (*channel.LostError)(nil); ctx.Err() != nil && errors.As(err, &lost) && err == error(lost) {
		return nil
	}
	return err
}

func TestRules(t *testing.T) {
	cfg := sourcetest.Config{New: newLog}
	able, err := newLog(t.Context())
	require.NoError(t, err)
	for _, r := range sourcetest.Rules() {
		if r.Needs != nil && !r.Needs(able) {
			continue
		}
		t.Run(r.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				require.NoError(t, r.Check(t.Context(), cfg), "rule: %s", r.Doc)
			})
		})
	}
}
