package recipes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
	"github.com/tumblestream/tumble/source/kafka"
)

var day = time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC)

// A place is a key and the start of a window.
type place struct {
	key   string
	start time.Time
}

// count counts a minute a tick of users into a sink, and returns what there is to find.
func count(t testing.TB, sink tumble.Sink, windows, users int, tick time.Duration) map[place]int64 {
	events := make(chan tumble.Event, 1000)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events, Final: true})
	require.NoError(t, err)
	p, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: tumble.Window{Size: time.Minute}, DropLate: true, FlushInterval: 5 * time.Millisecond})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Run(context.Background()) }()
	want := map[place]int64{}
	for w := range windows {
		start := day.Add(time.Duration(w) * time.Minute)
		for u := range users {
			for range 1 + (u+w)%3 {
				key := fmt.Sprintf("user_%d", u)
				events <- tumble.Event{Key: key, Time: start}
				want[place{key, start}]++
			}
		}
		time.Sleep(tick)
	}
	close(events)
	require.NoError(t, <-done)
	return want
}

// A receiver does what a request says once for each key. It fails as it is told.
type receiver struct {
	t  *testing.T
	mu sync.Mutex

	calls int
	seen  map[string]bool
	got   map[place]int64
	fail  func(call int, w http.ResponseWriter) (taken, failed bool)
}

func newReceiver(t *testing.T) *receiver {
	return &receiver{t: t, seen: map[string]bool{}, got: map[place]int64{}}
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls++
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return
	}
	taken, failed := true, false
	if r.fail != nil {
		taken, failed = r.fail(r.calls, w)
	}
	key := q.Header.Get("Idempotency-Key")
	if taken && !r.seen[key] {
		r.seen[key] = true
		var request Request
		if err := json.Unmarshal(body, &request); err != nil {
			r.t.Error(err)
		}
		for _, row := range request.Counts {
			r.got[place{row.Key, row.Start}] += row.N // twice would show
		}
	}
	if !failed {
		w.WriteHeader(http.StatusNoContent)
	}
}

// follow hands everything on, however often it must begin again.
func follow(t *testing.T, r tumble.Reader, d Destination, windows int) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	seen := 0
	err := Follow(ctx, r, counting{d, func() {
		if seen++; seen == windows {
			stop()
		}
	}})
	require.ErrorIs(t, err, context.Canceled)
}

// counting tells of each window that is written.
type counting struct {
	Destination
	wrote func()
}

func (c counting) Write(ctx context.Context, t tumble.Total, counts []tumble.Count) error {
	err := c.Destination.Write(ctx, t, counts)
	if err == nil {
		c.wrote()
	}
	return err
}

func TestWebhook(t *testing.T) {
	sink := memory.New(memory.Config{})
	want := count(t, sink, 5, 7, 0)
	for name, fail := range map[string]func(call int, w http.ResponseWriter) (taken, failed bool){
		"well": nil,
		"refused by turns": func(call int, w http.ResponseWriter) (bool, bool) {
			if call%2 == 1 {
				w.WriteHeader([]int{500, 503, 429}[call%3])
			}
			return call%2 == 0, call%2 == 1
		},
		"taken, and the answer lost": func(call int, w http.ResponseWriter) (bool, bool) {
			if call%3 == 1 {
				w.WriteHeader(http.StatusBadGateway)
			}
			return true, call%3 == 1
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(t)
			r.fail = fail
			server := httptest.NewServer(r)
			defer server.Close()
			hook := &Webhook{URL: server.URL, Name: "clicks", File: filepath.Join(t.TempDir(), "cursor"), Size: 3}
			follow(t, sink, hook, 5)
			require.Equal(t, want, r.got)
			require.Len(t, r.seen, 5*3)

			// Once more from the start: the receiver knows every request.
			require.NoError(t, os.Remove(hook.File))
			follow(t, sink, hook, 5)
			require.Equal(t, want, r.got)
			require.Len(t, r.seen, 5*3)
			left, err := filepath.Glob(hook.File + "*")
			require.NoError(t, err)
			require.Equal(t, []string{hook.File}, left, "no file of a cursor is left behind")
		})
	}
}

// A turning reader is another one from the given call of Scan on, and from the given calls
// of Windows on another one, one with another term, and one whose windows are open.
type turning struct {
	tumble.Reader
	scans, windows         int
	at, totals, term, open int // 0: never
	other                  tumble.Reader
}

func (r *turning) Scan(ctx context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	r.scans++
	if r.at > 0 && r.scans >= r.at {
		return r.other.Scan(ctx, at, cursor, limit)
	}
	return r.Reader.Scan(ctx, at, cursor, limit)
}

func (r *turning) Windows(ctx context.Context, from, to time.Time) ([]tumble.Total, error) {
	r.windows++
	of := r.Reader
	if r.totals > 0 && r.windows >= r.totals {
		of = r.other
	}
	totals, err := of.Windows(ctx, from, to)
	for i := range totals {
		if r.term > 0 && r.windows >= r.term {
			totals[i].Term++
		}
		if r.open > 0 && r.windows >= r.open {
			totals[i].State = tumble.Open
		}
	}
	return totals, err
}

// written keeps what it gets in memory.
type written struct {
	cursor string
	got    map[place]int64
	wrote  func()
}

func (d *written) Cursor(context.Context) (string, error) { return d.cursor, nil }

func (d *written) Move(_ context.Context, cursor string) error {
	d.cursor = cursor
	return nil
}

func (d *written) Write(_ context.Context, t tumble.Total, counts []tumble.Count) error {
	for _, c := range counts {
		d.got[place{c.Key, c.Start}] += c.N
	}
	d.cursor = t.Cursor
	d.wrote()
	return nil
}

// A window that is no longer the one that was final is not handed on: the store fell back
// after its total was read. Of a new term alone nothing is lost.
func TestFollowCompares(t *testing.T) {
	full, part := memory.New(memory.Config{}), memory.New(memory.Config{})
	want := count(t, full, 1, 7, 0)
	count(t, part, 1, 4, 0)
	// Windows is called by Finals, by All before and after its Scan, and by Follow.
	for name, c := range map[string]struct {
		turning
		changed bool
	}{
		"as it was":                     {},
		"fell back before it was read":  {turning: turning{at: 1, totals: 2}, changed: true},
		"fell back after it was read":   {turning: turning{totals: 4}, changed: true},
		"fell back while it was read":   {turning: turning{at: 1, totals: 3}, changed: true},
		"is open again":                 {turning: turning{open: 4}, changed: true},
		"has a new term":                {turning: turning{term: 2}},
		"has a new term after the read": {turning: turning{term: 4}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), 5*time.Second)
			defer stop()
			c.Reader, c.other = full, part
			d := &written{got: map[place]int64{}, wrote: stop}
			err := Follow(ctx, &c.turning, d)
			if c.changed {
				require.ErrorIs(t, err, tumble.ErrChanged)
				require.Empty(t, d.got)
				require.Empty(t, d.cursor)
				return
			}
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, want, d.got)
		})
	}
}

// Counts that are read under two terms are of two histories, even if their sums agree.
func TestFollowReadsAgain(t *testing.T) {
	sink := memory.New(memory.Config{})
	count(t, sink, 1, 3, 0)
	r := &turning{Reader: sink, term: 4}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	require.ErrorIs(t, Follow(ctx, r, &written{got: map[place]int64{}, wrote: stop}), context.Canceled)
	require.Equal(t, 2, r.scans)

	each := eachTerm{Reader: sink}
	err := Follow(t.Context(), &each, &written{got: map[place]int64{}, wrote: func() { t.Error("written") }})
	require.ErrorIs(t, err, tumble.ErrChanged)
}

// eachTerm has another term at each look.
type eachTerm struct {
	tumble.Reader
	looks uint64
}

func (r *eachTerm) Windows(ctx context.Context, from, to time.Time) ([]tumble.Total, error) {
	totals, err := r.Reader.Windows(ctx, from, to)
	for i := range totals {
		r.looks++
		totals[i].Term += r.looks
	}
	return totals, err
}

// An answer that comes too late is none, and the request comes again with its key.
func TestWebhookTimeout(t *testing.T) {
	sink := memory.New(memory.Config{})
	want := count(t, sink, 1, 3, 0)
	r := newReceiver(t)
	r.fail = func(call int, _ http.ResponseWriter) (bool, bool) {
		if call == 1 {
			time.Sleep(100 * time.Millisecond)
		}
		return true, false
	}
	server := httptest.NewServer(r)
	defer server.Close()
	hook := &Webhook{URL: server.URL, Name: "clicks", File: filepath.Join(t.TempDir(), "cursor"), HTTP: &http.Client{Timeout: 50 * time.Millisecond}}
	follow(t, sink, hook, 1)
	require.Equal(t, want, r.got)
	require.GreaterOrEqual(t, r.calls, 2)
	require.Len(t, r.seen, 1)
}

// What will never be taken is said at once, and the cursor stays.
func TestWebhookRefused(t *testing.T) {
	sink := memory.New(memory.Config{})
	count(t, sink, 2, 3, 0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no such customer", http.StatusUnprocessableEntity)
	}))
	defer server.Close()
	hook := &Webhook{URL: server.URL, Name: "clicks", File: filepath.Join(t.TempDir(), "cursor")}
	err := Follow(t.Context(), sink, hook)
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "422 Unprocessable Entity: no such customer")
	require.NoFileExists(t, hook.File)
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	date := func(after time.Duration) string { return now.Add(after).Format(http.TimeFormat) }
	for name, c := range map[string]struct {
		after, date string
		want        time.Duration
	}{
		"nothing":                  {"", date(0), 0},
		"seconds":                  {"7", date(0), 7 * time.Second},
		"many seconds":             {"99999", date(0), 10 * time.Minute},
		"more than a number holds": {"9999999999999999999", date(0), 0},
		"less than none":           {"-7", date(0), 0},
		"a date":                   {date(7 * time.Second), "", 7 * time.Second},
		"by the receiver's clock":  {date(-time.Hour + 7*time.Second), date(-time.Hour), 7 * time.Second},
		"a date that has passed":   {date(-time.Second), date(0), 0},
		"a date far ahead":         {date(48 * time.Hour), date(0), 10 * time.Minute},
		"a clock that is none":     {date(7 * time.Second), "noon", 7 * time.Second},
		"words":                    {"soon", date(0), 0},
	} {
		header := http.Header{}
		header.Set("Retry-After", c.after)
		header.Set("Date", c.date)
		require.Equal(t, c.want, retryAfter(header, now), name)
	}

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", date(0))
		w.Header().Set("Retry-After", date(7*time.Second))
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	defer server.Close()
	again, err := (&Webhook{URL: server.URL}).try(t.Context(), nil, "key", 0)
	require.ErrorContains(t, err, "429")
	require.Equal(t, 7*time.Second, again)
}

// A redirect is no delivery: neither is it followed, nor does what it leads to count.
func TestWebhookRedirected(t *testing.T) {
	sink := memory.New(memory.Config{})
	count(t, sink, 1, 3, 0)
	for _, code := range []int{301, 302, 303, 304, 307, 308} {
		calls := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if calls++; r.URL.Path == "/" {
				w.Header().Set("Location", "/login")
				w.WriteHeader(code)
			}
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		followed := 0
		client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { followed++; return nil }}
		hook := &Webhook{URL: server.URL, Name: "clicks", File: filepath.Join(t.TempDir(), "cursor"), HTTP: client}
		err := Follow(ctx, sink, hook)
		cancel()
		server.Close()
		require.ErrorIs(t, err, ErrRefused)
		require.ErrorContains(t, err, fmt.Sprint(code))
		require.ErrorContains(t, err, `"/login": redirects are not followed`)
		require.Equal(t, 1, calls)
		require.Zero(t, followed)
		require.NotNil(t, client.CheckRedirect, "the caller's client stays as it is")
		require.NoFileExists(t, hook.File)
	}
}

// A URL that cannot be meant is an error at the start, and not a receiver that is away.
func TestWebhookURL(t *testing.T) {
	sink := memory.New(memory.Config{})
	count(t, sink, 1, 3, 0)
	for _, url := range []string{"", "hooks", "/hooks", "localhost:8080/hooks", "//localhost/hooks", "http://", "https:///hooks", "http://:80", "ftp://localhost/hooks", "http://local host/", "http://localhost:port/"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := Follow(ctx, sink, &Webhook{URL: url, Name: "clicks", File: filepath.Join(t.TempDir(), "cursor")})
		require.NoError(t, ctx.Err(), url)
		cancel()
		require.ErrorContains(t, err, "Webhook.URL", url)
	}
	for _, url := range []string{"http://localhost", "https://user:word@localhost:8443/hooks?a=b", "http://[::1]:80/"} {
		require.NoError(t, (&Webhook{URL: url}).check())
	}
}

// The key is the same for the same counts of a window under whatever term, and another one
// for all else. The term is in a header of its own.
func TestKeys(t *testing.T) {
	var keys, terms []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		keys, terms = append(keys, r.Header.Get("Idempotency-Key")), append(terms, r.Header.Get("Tumble-Term"))
	}))
	defer server.Close()
	counts := make([]tumble.Count, 7)
	post := func(name string, from, to time.Time, term uint64, n int) []string {
		keys = nil
		hook := &Webhook{URL: server.URL, Name: name, File: filepath.Join(t.TempDir(), "cursor"), Size: 3}
		require.NoError(t, hook.Write(t.Context(), tumble.Total{Start: from, End: to, Term: term}, counts[:n]))
		return keys
	}
	minute, hour := day.Add(time.Minute), day.Add(time.Hour)
	first := post("clicks", day, minute, 1, 7)
	require.Len(t, first, 3)
	require.Equal(t, first, post("clicks", day, minute, 0xabc, 7))
	require.Equal(t, []string{"0000000000000001", "0000000000000abc"}, []string{terms[0], terms[3]})
	require.Equal(t, first[:2], post("clicks", day, minute, 1, 6), "after a loss there may be fewer")

	seen := map[string]bool{}
	for _, other := range [][]string{first, post("views", day, minute, 1, 7), post("clicks", minute, minute.Add(time.Minute), 1, 7), post("clicks", day, hour, 1, 7)} {
		for _, key := range other {
			require.False(t, seen[key])
			seen[key] = true
		}
	}
}

// A pipeline that is restarted draws new terms. A window that was posted in part before
// comes once all the same.
func TestWebhookNewTerm(t *testing.T) {
	sink := memory.New(memory.Config{})
	want := count(t, sink, 3, 7, 0)
	r := newReceiver(t)
	r.fail = func(call int, w http.ResponseWriter) (bool, bool) {
		if call == 5 {
			w.WriteHeader(http.StatusUnauthorized)
		}
		return call != 5, call == 5
	}
	server := httptest.NewServer(r)
	defer server.Close()
	hook := &Webhook{URL: server.URL, Name: "clicks", File: filepath.Join(t.TempDir(), "cursor"), Size: 3}
	require.ErrorIs(t, Follow(t.Context(), sink, hook), ErrRefused)
	again := &turning{Reader: sink, term: 1}
	require.NoError(t, Follow(t.Context(), again, hook), "the new term")
	follow(t, again, hook, 2)
	require.Equal(t, want, r.got)
	require.Len(t, r.seen, 3*3)
}

// A mended record has the headers and the time of the one that was rejected, also when that
// had been a letter before, and no headers of the letter.
func TestOriginal(t *testing.T) {
	written := day.Add(time.Hour)
	headers := func(names ...string) (all []kgo.RecordHeader) {
		for _, name := range names {
			value := "of " + name
			if name == kafka.HeaderTime {
				value = day.Add(1234 * time.Millisecond).Format(time.RFC3339Nano)
			}
			all = append(all, kgo.RecordHeader{Key: name, Value: []byte(value)})
		}
		return all
	}
	own := []string{kafka.HeaderTopic, kafka.HeaderPartition, kafka.HeaderOffset, kafka.HeaderCause}
	timed := append(slices.Clone(own), kafka.HeaderTime)
	for name, c := range map[string]struct {
		have, want []string
		at         time.Time
	}{
		"a letter":               {append([]string{"trace", "trace"}, timed...), []string{"trace", "trace"}, day.Add(1234 * time.Millisecond)},
		"without headers":        {timed, nil, day.Add(1234 * time.Millisecond)},
		"without a time":         {append([]string{"trace"}, own...), []string{"trace"}, time.Time{}},
		"a letter of a letter":   {slices.Concat([]string{"trace"}, timed, own), append([]string{"trace"}, timed...), time.Time{}},
		"one that was cut off":   {slices.Concat([]string{kafka.HeaderSize}, timed, []string{kafka.HeaderSize, kafka.HeaderDropped}), []string{kafka.HeaderSize}, day.Add(1234 * time.Millisecond)},
		"one that was forwarded": {slices.Concat([]string{"trace"}, timed, []string{"mirror"}), []string{"trace", "mirror"}, day.Add(1234 * time.Millisecond)},
		"no letter":              {[]string{"trace", kafka.HeaderTime}, []string{"trace", kafka.HeaderTime}, written},
	} {
		got, at := original(&kgo.Record{Headers: headers(c.have...), Timestamp: written})
		require.ElementsMatch(t, headers(c.want...), got, name)
		require.True(t, at.Equal(c.at), name)
	}
}

// Minutes before the switch are the loop's, all others the pipeline's.
func TestAcross(t *testing.T) {
	sink := memory.New(memory.Config{})
	want := count(t, sink, 10, 3, 0)
	asked := errors.New("asked")
	a := Across{Counts: sink, At: day.Add(4 * time.Minute), Old: func(_ context.Context, key string, minute time.Time) (int64, error) {
		if key == "nobody" {
			return 0, asked
		}
		return 100 + int64(minute.Sub(day)/time.Minute), nil
	}}
	for m := range 10 {
		at := day.Add(time.Duration(m)*time.Minute + 59*time.Second)
		c, err := a.Count(t.Context(), "user_1", at)
		require.NoError(t, err)
		require.True(t, c.Start.Equal(at.Truncate(time.Minute)))
		if m < 4 {
			require.Equal(t, int64(100+m), c.N)
			require.Equal(t, tumble.Closed, c.State)
		} else {
			require.Equal(t, want[place{"user_1", c.Start.UTC()}], c.N)
			require.Equal(t, tumble.Final, c.State)
		}
	}
	_, err := a.Count(t.Context(), "nobody", day)
	require.ErrorIs(t, err, asked)
}
