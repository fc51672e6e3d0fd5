// Package web serves counts over HTTP: an API in JSON, its OpenAPI description, a page
// that moves by itself, health and metrics. It reads through a [tumble.Reader] and knows
// no store, so it works in the process that counts and in one that only reads:
//
//	h, err := web.New(web.Config{Counts: counts, Item: "requests", Key: "host", Keys: "hosts"})
//	...
//	server := &http.Server{Handler: h}
//	server.RegisterOnShutdown(h.Close) // or Shutdown waits for the pages that are open
//
// The words of paths and answers are those of Config. With the defaults:
//
//	GET /clicks/{user_id}/{minute}            a count
//	GET /clicks/{user_id}?from=M&to=M         one user's counts of several windows
//	GET /minutes?from=M&to=M                  what each window adds up to
//	GET /minutes/{minute}/top?n=10            the highest counts of a window
//	GET /minutes/{minute}/users?limit=&cursor=  all of them, in pages
//	GET /progress                             how far counting has come
//	GET /, /events                            the page, and what tells it what to draw
//	GET /healthz, /readyz, /metrics, /openapi.json
//
// A minute is any instant, as 2006-01-02T15:04 in UTC, RFC 3339 or "now", and names the
// window that holds it, however long that is. ?window=1h answers from a roll-up.
//
// Answers name no address: why the store cannot be read is told to the Logger. There is
// no authentication: put the handler behind your own.
package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
)

const (
	maxTop   = 10_000 // keys in one answer of top
	maxLimit = 10_000 // keys asked for in one page
	// maxWindows bounds a range, in which each window is a look-up in the store. It
	// is more than the minutes of a month.
	maxWindows = 50_000
	// storeTimeout bounds a request. A store that takes longer hangs.
	storeTimeout = 3 * time.Second
)

// Config of a Handler.
type Config struct {
	// Counts are read. Required.
	Counts tumble.Reader

	// Item is what is counted: "clicks" by default. It is the first part of a count's
	// path and the name of the number in answers: lower-case letters, digits and _.
	Item string
	// Key is the name of a key in answers: "user_id" by default.
	Key string
	// Keys is what several keys are called: "users" by default.
	Keys string

	// Stats are those of the pipeline, if it runs in this process. They are added to
	// /metrics, and the page shows late and rejected events.
	Stats func() tumble.Stats

	// Forecast, if set, says what the windows from the given instant on, the start of
	// the first window that is still open, are expected to add up to. The page draws
	// it as a band. It is asked once for each window that closes.
	Forecast func(ctx context.Context, counts tumble.Reader, from time.Time) ([]Band, error)

	// Logger is told why the store cannot be read. Defaults to slog.Default().
	Logger *slog.Logger
}

// A Band says within which bounds a window is expected to end.
type Band struct {
	Start, End        time.Time // of the window
	Low, Middle, High float64
}

// A Handler answers requests. It is safe for concurrent use.
type Handler struct {
	cfg     Config
	mux     http.ServeMux
	words   words
	openAPI string
	seen    traffic
	store   outage
	live    live

	closing sync.Once
	closed  chan struct{}
}

// New returns a Handler. It does not ask the store.
func New(cfg Config) (*Handler, error) {
	if cfg.Counts == nil {
		return nil, errors.New("web: Config.Counts is nil")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	words := words{cmp.Or(cfg.Item, standard.item), cmp.Or(cfg.Key, standard.key), cmp.Or(cfg.Keys, standard.keys)}
	if err := words.check(); err != nil {
		return nil, err
	}
	h := &Handler{cfg: cfg, words: words, openAPI: words.describe(), store: outage{log: cfg.Logger}, closed: make(chan struct{})}
	h.read("/clicks/{user_id}/{minute}", h.count)
	h.read("/clicks/{user_id}", h.history)
	h.read("/minutes", h.minutes)
	h.read("/minutes/{minute}/top", h.top)
	h.read("/minutes/{minute}/users", h.users)
	h.read("/progress", h.progress)
	h.read("/healthz", h.health)
	h.read("/readyz", h.health)
	h.get("/metrics", h.metrics)
	h.get("/openapi.json", h.description)
	h.page()
	h.mux.HandleFunc("/", h.seen.count("", func(w http.ResponseWriter, r *http.Request) {
		program.WriteError(w, http.StatusNotFound, fmt.Errorf("no such resource: %s", strings.ReplaceAll(r.URL.Path, "/"+mark, "/")))
	}, http.StatusNotFound))
	return h, nil
}

// Close ends the streams of the pages that are open, which would go on for ever, and
// lets no new one begin. All else is answered as before.
func (h *Handler) Close() { h.closing.Do(func() { close(h.closed) }) }

// mark stands before every part of a path that the mux sees. A ServeMux redirects
// from empty parts and dots, and takes a user called "/" for a trailing slash.
// Behind a mark they are names.
const mark = "="

func marked(path string) string {
	return "/" + mark + strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "/"+mark)
}

// variable returns a variable part of the path.
func variable(r *http.Request, name string) string {
	return strings.TrimPrefix(r.PathValue(name), mark)
}

// ServeHTTP answers a request. Behind [http.StripPrefix] all of it, the page too, is
// served under a path of your choice, which ends with a slash.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// An answer is of its Content-Type, whatever it looks like to a browser.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	inner := *r
	inner.URL = &url.URL{RawPath: marked(r.URL.EscapedPath()), RawQuery: r.URL.RawQuery}
	inner.URL.Path, _ = url.PathUnescape(inner.URL.RawPath) // EscapedPath is always valid
	if inner.RequestURI == "*" {
		inner.RequestURI = "" // the mux has an answer of its own to it, which is not JSON
	}
	h.mux.ServeHTTP(w, &inner)
}

// get answers GET and HEAD requests for a path, which is given in the standard words.
// Its metrics count answers of codes from 0.
func (h *Handler) get(path string, answer http.HandlerFunc, codes ...int) {
	path = h.words.rename(path)
	pattern := strings.ReplaceAll(marked(path), mark+"{", "{")
	h.mux.HandleFunc("GET "+pattern, h.seen.count(path, answer, append(codes, http.StatusOK)...))
	h.mux.HandleFunc(pattern, h.seen.count(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "GET, HEAD")
		program.WriteError(w, http.StatusMethodNotAllowed, fmt.Errorf("method %s is not allowed here", r.Method))
	}))
}

// read answers GET and HEAD requests for a path from the store.
func (h *Handler) read(path string, get func(*http.Request) (any, error)) {
	h.get(path, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
		defer cancel()
		x, err := get(r.WithContext(ctx))
		if a, ok := x.(answer); err == nil && ok {
			program.Write(w, http.StatusOK, append(a.append(make([]byte, 0, 256)), '\n'))
		} else if err == nil {
			err = program.WriteJSON(w, http.StatusOK, x)
		}
		switch {
		case err == nil:
			h.store.over()
		case errors.As(err, new(badRequest)):
			program.WriteError(w, http.StatusBadRequest, err)
		case errors.Is(err, tumble.ErrCursor):
			program.WriteError(w, http.StatusBadRequest, errCursor)
		default:
			if r.Context().Err() == nil { // otherwise the client has gone
				h.store.failed(err)
			}
			program.WriteError(w, http.StatusServiceUnavailable, errUnavailable)
		}
	}, http.StatusServiceUnavailable)
}

// Errors for clients, in place of a reader's own.
var (
	errUnavailable = errors.New("the counts cannot be read now, try again")
	errCursor      = errors.New("cursor must be empty, or one that came with the page before")
)

// health answers whether the store can be read.
func (h *Handler) health(r *http.Request) (any, error) {
	_, err := h.definition(r.Context())
	return program.Healthy, err
}

func (h *Handler) metrics(w http.ResponseWriter, r *http.Request) {
	var m program.Metrics
	h.seen.write(&m)
	if h.cfg.Stats != nil {
		m.Pipeline(h.cfg.Stats())
	}
	m.ServeHTTP(w, r)
}

// description answers with the description of the API. Its paths begin where it stands
// itself, and it names the windows that are counted, if the store can be read.
func (h *Handler) description(w http.ResponseWriter, r *http.Request) {
	base, _, _ := strings.Cut(r.RequestURI, "?")
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	defer cancel()
	var windows []string
	if def, err := h.definition(ctx); err == nil {
		for _, l := range def.Levels() {
			windows = append(windows, l.Window.String())
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(h.words.of(h.openAPI, strings.TrimSuffix(base, "/openapi.json"), windows))) // an error is the client's
}
