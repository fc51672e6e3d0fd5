package kafka

import (
	"io"
	"log/slog"
	"testing"
)

func loggerTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func TestSourceOnFakeCluster(t *testing.T) {
	t.Parallel()
	c := fakeCluster(t)
	t.Run("", func(t *testing.T) { runSourceScenarios(t, c) })
}
