package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"
)

// servers are those that contenders run against.
type servers struct {
	kafka, redis, cluster string // addresses
	db                    rueidis.Client
	stop                  func()
}

// serverFlags says which servers to use.
type serverFlags struct {
	kafka, redis *string
	keep         *bool
}

func declareServers(f *flag.FlagSet) serverFlags {
	return serverFlags{
		kafka: f.String("kafka", "", "`address` of a Kafka to use; default: one of its own is started"),
		redis: f.String("redis", "", "`address` of a Redis to use, whose data is DELETED; default: one of its own is started"),
		keep:  f.Bool("keep", false, "leave the servers running, and the clicks in them, for the next run"),
	}
}

// repository is the root of the repository this program was started in.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "scripts", "servers")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no scripts/servers above %s: run it from the folder bench", dir)
		}
	}
}

// cacheDir returns a folder, below the user's cache, for what is slow to make.
func cacheDir(name string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "tumble", "bench", name)
	return dir, os.MkdirAll(dir, 0o755)
}

// start returns the servers once they answer. Its caller calls stop.
func (s serverFlags) start(ctx context.Context) (*servers, error) {
	up := &servers{kafka: *s.kafka, redis: *s.redis, stop: func() {}}
	if up.kafka == "" || up.redis == "" {
		root, err := repository()
		if err != nil {
			return nil, err
		}
		state, err := cacheDir("servers")
		if err != nil {
			return nil, err
		}
		unlock, err := lock(state)
		if err != nil {
			return nil, err
		}
		up.stop = unlock
		ci := func(ctx context.Context, arg string) ([]byte, error) {
			cmd := exec.CommandContext(ctx, filepath.Join(root, "scripts", "servers"), arg)
			cmd.Env = append(os.Environ(), "TUMBLE_SERVERS="+state)
			cmd.Stderr = os.Stderr
			return cmd.Output()
		}
		if _, err := ci(ctx, "up"); err != nil {
			unlock()
			return nil, fmt.Errorf("scripts/servers up: %w", err)
		}
		if !*s.keep {
			up.stop = func() {
				_, _ = ci(context.WithoutCancel(ctx), "down") // it says itself what failed
				unlock()
			}
		}
		env, err := ci(ctx, "env")
		if err != nil {
			up.stop()
			return nil, fmt.Errorf("scripts/servers env: %w", err)
		}
		for line := range strings.Lines(string(env)) {
			name, address, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
			switch {
			case name == "TUMBLE_KAFKA" && up.kafka == "":
				up.kafka = address
			case name == "TUMBLE_REDIS" && up.redis == "":
				up.redis = address
			case name == "TUMBLE_REDIS_CLUSTER":
				up.cluster = address
			}
		}
	}
	db, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{up.redis}, DisableCache: true})
	if err != nil {
		up.stop()
		return nil, fmt.Errorf("redis %s: %w", up.redis, err)
	}
	up.db = db
	stop := up.stop
	up.stop = func() { db.Close(); stop() }
	return up, nil
}

// lock keeps two runs from the same servers: each empties Redis as it likes.
func lock(dir string) (unlock func(), err error) {
	file, err := os.OpenFile(filepath.Join(dir, "bench.lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		return nil, fmt.Errorf("another run uses the servers in %s: %w", dir, err)
	}
	return func() { file.Close() }, nil
}

// redisUse is what Redis has spent.
type redisUse struct {
	cpu    time.Duration
	memory int64 // bytes
	came   int64 // bytes, over the network
}

// info reads a server's own account of itself.
func info(ctx context.Context, db rueidis.Client) (redisUse, error) {
	text, err := db.Do(ctx, db.B().Info().Section("cpu", "memory", "stats").Build()).ToString()
	if err != nil {
		return redisUse{}, err
	}
	values := map[string]float64{}
	for scan := bufio.NewScanner(strings.NewReader(text)); scan.Scan(); {
		name, value, _ := strings.Cut(scan.Text(), ":")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			values[name] = v
		}
	}
	cpu := values["used_cpu_sys"] + values["used_cpu_user"]
	if cpu == 0 || values["used_memory"] == 0 {
		return redisUse{}, errors.New("redis: INFO tells no use of CPU or memory")
	}
	return redisUse{time.Duration(cpu * float64(time.Second)), int64(values["used_memory"]), int64(values["total_net_input_bytes"])}, nil
}

// flush empties Redis and returns what the empty server uses.
func flush(ctx context.Context, db rueidis.Client) (redisUse, error) {
	if err := db.Do(ctx, db.B().Flushall().Sync().Build()).Error(); err != nil {
		return redisUse{}, err
	}
	// Not before Redis has sized its tables down: it does so by and by.
	time.Sleep(300 * time.Millisecond)
	return info(ctx, db)
}

// cpuOf is the CPU time that a process has used so far, all threads together,
// to 10 ms.
func cpuOf(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third on
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: cannot be understood", pid)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}
