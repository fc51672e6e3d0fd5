//go:build servers

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
)

var (
	redisAt  = cmp.Or(os.Getenv("TUMBLE_REDIS"), "localhost:6379")
	postgres = cmp.Or(os.Getenv("TUMBLE_POSTGRES"), "postgres://postgres@localhost:5432/postgres")
	bin      string // the program as a user would build it
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "export")
		if err == nil {
			defer os.RemoveAll(dir)
			bin = filepath.Join(dir, "export")
			var out []byte
			if out, err = exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// newSink returns a sink with a name that no other test uses, and deletes what is
// stored under it after the test.
func newSink(t testing.TB) (sink *redis.Sink, name string) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: strings.Split(redisAt, ",")})
	require.NoError(t, err, "Redis at %s", redisAt)
	name = fmt.Sprintf("export-%x", rand.Uint64())
	sink, err = redis.New(redis.Config{Client: client, Name: name, Shards: 4})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx := context.Background()
		for cursor := uint64(0); ; {
			page, err := client.Do(ctx, client.B().Scan().Cursor(cursor).Match(name+":*").Count(1000).Build()).AsScanEntry()
			require.NoError(t, err)
			for _, key := range page.Elements {
				require.NoError(t, client.Do(ctx, client.B().Unlink().Key(key).Build()).Error())
			}
			if cursor = page.Cursor; cursor == 0 {
				break
			}
		}
		client.Close()
	})
	return sink, name
}

// databases returns one of each kind, empty.
func databases(t *testing.T) map[string]string {
	admin := newStore(t, postgres)
	fresh := fmt.Sprintf("export_%x", rand.Uint64())
	for _, do := range []string{"DROP TABLE finals", "DROP TABLE export", "CREATE DATABASE " + fresh} { // open made the tables
		_, err := admin.Exec(do)
		require.NoError(t, err)
	}
	t.Cleanup(func() {
		_, err := admin.Exec("DROP DATABASE " + fresh + " WITH (FORCE)")
		require.NoError(t, err)
	})
	i := strings.LastIndex(postgres, "/")
	return map[string]string{"SQLite": filepath.Join(t.TempDir(), "finals.db"), "PostgreSQL": postgres[:i+1] + fresh}
}

// Processes that are killed at random moments, two at once, beside counting.
func TestKilled(t *testing.T) {
	for kind, where := range databases(t) {
		t.Run(kind, func(t *testing.T) {
			sink, name := newSink(t)
			want := map[row]int64{}
			var counting sync.WaitGroup
			counting.Go(func() { count(t, tumble.Config{Sink: sink, DropLate: true}, 100, 200, want) })
			command := func() *exec.Cmd {
				return exec.Command(bin, "-redis", redisAt, "-name", name, "-db", where)
			}
			for range 20 {
				var two sync.WaitGroup
				for range 2 {
					two.Go(func() {
						cmd := command()
						cmd.Stderr = os.Stderr
						if err := cmd.Start(); err != nil {
							t.Error(err)
							return
						}
						time.Sleep(time.Duration(20+rand.IntN(180)) * time.Millisecond)
						_ = cmd.Process.Kill()
						if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
							t.Errorf("it ended by itself: %v", err)
						}
					})
				}
				two.Wait()
			}
			counting.Wait()
			cmd := command()
			var said bytes.Buffer
			cmd.Stderr = &said
			require.NoError(t, cmd.Start())
			db := newStore(t, where)
			for end := time.Now().Add(time.Minute); len(rows(t, db)) < len(want) && time.Now().Before(end); {
				time.Sleep(50 * time.Millisecond)
			}
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
			require.NoError(t, cmd.Wait(), said.String())
			require.Contains(t, said.String(), "windows, ")
			require.Equal(t, want, rows(t, db))
		})
	}
}

// fails runs the program, which is to end with code 1 and one line, within 5 seconds.
func fails(t *testing.T, says string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begin := time.Now()
	out, err := exec.CommandContext(ctx, bin, append([]string{"-redis", redisAt}, args...)...).CombinedOutput()
	require.Error(t, err)
	require.ErrorContains(t, err, "exit status 1", string(out))
	require.Less(t, time.Since(begin), 5*time.Second)
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Contains(t, lines[len(lines)-1], says)
}

func TestSaysWhatIsWrong(t *testing.T) {
	sink, name := newSink(t)
	count(t, tumble.Config{Sink: sink}, 2, 3, map[row]int64{})
	db := filepath.Join(t.TempDir(), "finals.db")
	fails(t, "export its windows with -closed", "-name", name, "-db", db)
	fails(t, "no/such/folder/finals.db", "-name", name, "-db", "no/such/folder/finals.db")
	fails(t, "localhost:1", "-name", name, "-db", "postgres://me:secret@localhost:1/clicks")
	fails(t, "no_such_database", "-name", name, "-db", postgres+"?dbname=no_such_database")
	fails(t, "counted are 1m0s", "-name", name, "-db", db, "-closed", "-window", "1h")
	require.NoError(t, os.WriteFile(db+"2", bytes.Repeat([]byte("no database "), 100), 0o600))
	fails(t, "finals.db2", "-name", name, "-db", db+"2")

	strict, other := newSink(t)
	count(t, tumble.Config{Sink: strict, DropLate: true}, 1, 3, map[row]int64{})
	held := newStore(t, db)
	e := &exporter{counts: strict, name: other, db: held, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, e.run(ctx), context.DeadlineExceeded)
	fails(t, "holds the final windows (1m0s) of "+other, "-name", name, "-db", db, "-closed")
}

// PostgreSQL's text holds no zero byte: the program ends and names the key, and nothing
// of the window is written.
func TestKeyThatDoesNotFit(t *testing.T) {
	sink, name := newSink(t)
	counted := map[row]int64{}
	cfg := tumble.Config{Sink: sink, DropLate: true}
	count(t, cfg, 1, 3, counted)
	where := databases(t)["PostgreSQL"]
	db := newStore(t, where)
	r := changed{sink, func(c *tumble.Count) { c.Key = "a\x00b" }}
	e := &exporter{counts: r, name: name, db: db, log: slog.New(slog.DiscardHandler)}
	require.ErrorContains(t, e.run(t.Context()), `key "a\x00b", window 2023-10-01T00:00:00Z`)
	require.Empty(t, rows(t, db))
}

// The panels of the dashboard ask PostgreSQL what it can answer. Grafana's macros and
// variables are put in as Grafana does.
func TestGrafana(t *testing.T) {
	sink, name := newSink(t)
	want := map[row]int64{}
	count(t, tumble.Config{Sink: sink, DropLate: true}, 5, 12, want)
	db := newStore(t, databases(t)["PostgreSQL"])
	e := &exporter{counts: sink, name: name, db: db, log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorIs(t, e.run(ctx), context.DeadlineExceeded)

	text, err := os.ReadFile("grafana.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ RawSQL string }
		}
		Templating struct {
			List []struct{ Query string }
		}
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	filter := regexp.MustCompile(`\$__timeFilter\((.*?\))\)`)
	asked := 0
	ask := func(title, sql string) {
		asked++
		sql = filter.ReplaceAllString(sql, "$1 BETWEEN '2023-10-01T00:00:00Z' AND '2023-10-01T01:00:00Z'")
		sql = strings.ReplaceAll(sql, "${key:sqlstring}", "'user_1'")
		require.NotContains(t, sql, "$", title)
		found, err := db.Query(sql)
		require.NoError(t, err, "%s: %s", title, sql)
		defer found.Close()
		n := 0
		for found.Next() {
			n++
		}
		require.NoError(t, found.Err())
		require.Contains(t, []int{5, 10, 12}, n, "%s: a row a minute, the ten first, or one for each user", title)
	}
	for _, p := range dashboard.Panels {
		require.NotEmpty(t, p.Targets, p.Title)
		for _, q := range p.Targets {
			ask(p.Title, q.RawSQL)
		}
	}
	for _, v := range dashboard.Templating.List {
		if v.Query != "" { // that of the database has none
			ask("variable", v.Query)
		}
	}
	require.Equal(t, 4, asked)
}

// load stores windows of users that are final, one batch a window and shard.
func load(b *testing.B, sink *redis.Sink, windows, users int) {
	b.Helper()
	events := make(chan tumble.Event, 1000)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events, Final: true})
	require.NoError(b, err)
	p, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: tumble.Window{Size: time.Minute}, DropLate: true})
	require.NoError(b, err)
	done := make(chan error, 1)
	go func() { done <- p.Run(context.Background()) }()
	for w := range windows {
		for u := range users {
			events <- tumble.Event{Key: fmt.Sprintf("user_%d", u), Time: day.Add(time.Duration(w) * time.Minute)}
		}
	}
	close(events)
	require.NoError(b, <-done)
}

// BenchmarkExport exports 60 windows of 10,000 users, of which one row is one iteration.
func BenchmarkExport(b *testing.B) {
	sink, name := newSink(b)
	load(b, sink, 60, 10_000)
	b.Run("SQLite", func(b *testing.B) {
		exported := 0
		for b.ResetTimer(); exported < b.N; exported += 600_000 {
			db, err := open(b.Context(), filepath.Join(b.TempDir(), fmt.Sprint(exported)))
			require.NoError(b, err)
			ctx, cancel := context.WithCancel(b.Context())
			e := &exporter{counts: sink, name: name, db: db, log: slog.New(slog.DiscardHandler)}
			done := make(chan error, 1)
			go func() { done <- e.run(ctx) }()
			for n := 0; n < 600_000; time.Sleep(time.Millisecond) {
				require.NoError(b, db.QueryRow(`SELECT coalesce((SELECT count(*) FROM finals), 0)`).Scan(&n))
				time.Sleep(50 * time.Millisecond)
			}
			cancel()
			<-done
			require.NoError(b, db.Close())
		}
		b.ReportMetric(float64(exported)/b.Elapsed().Seconds(), "rows/s")
	})
}
