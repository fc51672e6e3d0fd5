//go:build servers

package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Prometheus' own tool finds nothing wrong with what compose.yaml gives it.
func TestPromtool(t *testing.T) {
	text, err := os.ReadFile("compose/prometheus.yaml")
	require.NoError(t, err)
	rules, err := filepath.Abs("../prom/alerts.yaml")
	require.NoError(t, err)
	config := filepath.Join(t.TempDir(), "prometheus.yaml")
	require.NoError(t, os.WriteFile(config, []byte(strings.ReplaceAll(string(text), "/etc/prometheus/alerts.yaml", rules)), 0o644))
	out, err := exec.Command("promtool", "check", "config", config).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "10 rules found")
}
