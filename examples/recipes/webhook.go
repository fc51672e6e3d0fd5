package recipes

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

// A Webhook posts windows, some counts at a time. Each request has a header
// Idempotency-Key, the same whenever the same counts are posted again: after an answer
// that did not arrive, after a crash between the answer and the cursor, and after a restart
// of the pipeline. A receiver that does nothing for a key that it has seen does everything
// once.
//
// The header Tumble-Term has the window's term, 16 hexadecimal digits. It is another one
// after a restart of the pipeline, and after a loss of the store, when the counts under a
// key that was seen may differ. So the term is not in the key: a receiver decides for
// itself, as it can compare the counts.
type Webhook struct {
	URL  string
	Name string // of the counts; it is part of the keys
	File string // that keeps the cursor; one for each URL and Name
	// Size is how many counts a request has at most. Defaults to 1,000. With another Size
	// a window that was posted in part has its counts under other keys: change it only
	// together with Name, or where the receiver tells counts apart by their own keys.
	Size int
	HTTP *http.Client // default: one that waits 10 s for an answer
}

// A Request is the body of one.
type Request struct {
	Name   string    `json:"name"`
	Start  time.Time `json:"start"`
	End    time.Time `json:"end"`
	Part   int       `json:"part"` // from 1
	Parts  int       `json:"parts"`
	Counts []Row     `json:"counts"`
}

// check returns an error for a URL that no request can ever reach. It would be tried again
// for ever else, as if the receiver were away.
func (h *Webhook) check() error {
	u, err := url.Parse(h.URL)
	if err != nil {
		return fmt.Errorf("Webhook.URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
		return fmt.Errorf("Webhook.URL is %q, must begin with http://HOST or https://HOST", h.URL)
	}
	return nil
}

// Cursor reads the file. It is the first call of [Follow], so it checks the URL, too.
func (h *Webhook) Cursor(context.Context) (string, error) {
	if err := h.check(); err != nil {
		return "", err
	}
	text, err := os.ReadFile(h.File)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// Move writes the file: a new one in its place, so that there is always a whole one.
func (h *Webhook) Move(_ context.Context, cursor string) error {
	file, err := os.CreateTemp(filepath.Dir(h.File), filepath.Base(h.File)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name()) // of one that did not come into its place
	_, err = file.WriteString(cursor + "\n")
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	return os.Rename(file.Name(), h.File)
}

// Write posts a window, and keeps the cursor once all of it has been taken.
func (h *Webhook) Write(ctx context.Context, t tumble.Total, counts []tumble.Count) error {
	size := cmp.Or(h.Size, 1000)
	request := Request{Name: h.Name, Start: t.Start.UTC(), End: t.End.UTC(), Parts: max(1, (len(counts)+size-1)/size)}
	for request.Part = 1; request.Part <= request.Parts; request.Part++ {
		request.Counts = []Row{}
		row := (request.Part - 1) * size
		for _, c := range counts[row:min(row+size, len(counts))] {
			request.Counts = append(request.Counts, Row{c.Key, c.Start.UTC(), c.N})
		}
		if err := h.post(ctx, request, row, t.Term); err != nil {
			return err
		}
	}
	return h.Move(ctx, t.Cursor)
}

// ErrRefused is wrapped by the error of a request that the receiver will not take,
// however often it comes.
var ErrRefused = errors.New("the receiver refuses the request")

// post posts until the receiver has answered that it has the request. row is the number of
// its first count in the window. The key is made of that and the window, and not of the
// term, nor of how many counts there are: these may be others when it is posted again.
func (h *Webhook) post(ctx context.Context, request Request, row int, term uint64) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %s %s %d", request.Name, request.Start.Format(time.RFC3339Nano), request.End.Format(time.RFC3339Nano), row))
	key := hex.EncodeToString(sum[:16])
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 30*time.Second) {
		again, err := h.try(ctx, body, key, term)
		if err == nil {
			return nil
		}
		if again < 0 || ctx.Err() != nil {
			return fmt.Errorf("%s: %w", h.URL, err)
		}
		select {
		case <-time.After(max(wait, again)):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", h.URL, errors.Join(ctx.Err(), err))
		}
	}
}

// try posts once. After an error it returns how long the receiver wants to be left alone,
// or a negative time if there is no use in trying again.
func (h *Webhook) try(ctx context.Context, body []byte, key string, term uint64) (again time.Duration, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(body))
	if err != nil {
		return -1, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", `"`+key+`"`) // a string of structured fields: RFC 9651
	r.Header.Set("Tumble-Term", fmt.Sprintf("%016x", term))
	client := http.Client{Timeout: 10 * time.Second}
	if h.HTTP != nil {
		client = *h.HTTP // a copy: it is the caller's
	}
	// A client that follows a 301, 302 or 303 makes a GET without a body of the POST, and
	// what the page there answers says nothing of the counts.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	answer, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(answer.Body, 200))
	switch code := answer.StatusCode; {
	case code/100 == 2:
		return 0, nil
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code/100 == 5:
		return retryAfter(answer.Header, time.Now()), fmt.Errorf("%s: %s", answer.Status, said)
	case code/100 == 3:
		return -1, fmt.Errorf("%w: %s to %q: redirects are not followed, set Webhook.URL to where it leads", ErrRefused, answer.Status, answer.Header.Get("Location"))
	default:
		return -1, fmt.Errorf("%w: %s: %s", ErrRefused, answer.Status, said)
	}
}

// retryAfter returns how long the receiver wants to be left alone, from seconds or a date,
// and 10 minutes at most. 0: it does not say, or a time that has passed. A date is read by
// the receiver's clock, where it tells that one.
func retryAfter(header http.Header, now time.Time) time.Duration {
	const most = 10 * time.Minute
	text := header.Get("Retry-After")
	if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
		return min(time.Duration(seconds)*time.Second, most)
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	if theirs, err := http.ParseTime(header.Get("Date")); err == nil {
		now = theirs
	}
	return max(0, min(at.Sub(now), most))
}
