package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain makes the test's binary the program, where program asks for it. With a
// binary that it built itself, go test would not notice that main has changed.
func TestMain(m *testing.M) {
	if os.Getenv("TUMBLE_RUN_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program returns the program with its flags, to be started.
func program(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	// The race detector would let each process sleep for a second at its end.
	cmd.Env = append(os.Environ(), "TUMBLE_RUN_MAIN=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

// fails runs the program, which must end within 5 seconds with exit code 1 and
// one line on stderr that says what is wanted.
func fails(t *testing.T, says string, args ...string) {
	t.Helper()
	var out bytes.Buffer // of stderr
	cmd := program(args...)
	cmd.Stderr = &out
	require.NoError(t, cmd.Start())
	kill := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
	require.True(t, kill.Stop(), "%v: it still runs after 5 seconds: %s", args, &out)
	require.Equal(t, 1, cmd.ProcessState.ExitCode(), "%s", &out)
	require.Equal(t, 1, strings.Count(out.String(), "\n"), "%s", &out)
	require.True(t, strings.HasPrefix(out.String(), "kafka-redis: "), "%s", &out)
	require.Contains(t, out.String(), says)
}

// nobody returns an address where nobody listens, and one where connections are
// taken and nothing is said.
func nobody(t *testing.T) (refused, silent string) {
	t.Helper()
	gone, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	l, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return gone.Addr().String(), l.Addr().String()
}

func TestErrorsNameTheCause(t *testing.T) {
	refused, silent := nobody(t)
	for _, redis := range []string{refused, silent} {
		fails(t, redis, "-redis", redis)
	}
	fails(t, `"localhost"`, "-brokers", "localhost")
	fails(t, "Config.Topic", "-topic", "a/b")
}
