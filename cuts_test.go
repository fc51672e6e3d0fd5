package tumble_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

// Two processes whose time zone data differ cut other days under the same name.
func TestTimeZoneDataThatDiffer(t *testing.T) {
	sink := memory.New(memory.Config{})
	count := func(zone *time.Location, rollup bool) string {
		var log bytes.Buffer
		events := make(chan tumble.Event, 1)
		events <- tumble.Event{Key: "ada", Time: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
		close(events)
		source, err := channel.New(channel.Config{ID: "clicks", Events: events})
		require.NoError(t, err)
		cfg := tumble.Config{Source: source, Sink: sink, Window: tumble.Window{Calendar: tumble.Day, Zone: zone}, Logger: slog.New(slog.NewTextHandler(&log, nil))}
		if rollup {
			cfg.Window, cfg.Rollups = tumble.Window{Size: time.Hour}, []tumble.Rollup{{Window: tumble.Window{Calendar: tumble.Day, Zone: zone}}}
		}
		p, err := tumble.New(cfg)
		require.NoError(t, err)
		require.NoError(t, p.Run(context.Background()))
		return log.String()
	}
	for _, rollup := range []bool{false, true} {
		if rollup {
			sink = memory.New(memory.Config{})
		}
		require.Empty(t, count(faketest.Zone(t, "Africa/Lagos", 1), rollup))
		require.Empty(t, count(faketest.Zone(t, "Africa/Lagos", 1), rollup), "the same data")
		log := count(faketest.Zone(t, "Africa/Lagos", 2), rollup)
		require.Equal(t, 1, strings.Count(log, "level=WARN"), log)
		require.Contains(t, log, "cuts windows otherwise")
		require.Contains(t, log, "zone=Africa/Lagos")
	}
}
