package kafka

import (
	"flag"
	"os"
	"testing"
)

// Tests that wait, for a session or a backoff, wait side by side.
func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", "32")
	}
	os.Exit(m.Run())
}
