package program

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"
)

// Listen listens on addr, which it names when that fails.
func Listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	return l, nil
}

// URL returns the address at which l, which listens on addr, is found: addr's
// host as it was written, and the port that l really has.
func URL(l net.Listener, addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	if host == "" {
		host = "localhost"
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return "http://" + net.JoinHostPort(host, port)
}

// Serve answers requests on l, which it closes, until ctx ends. Requests that
// are under way then have half a second to finish.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    64 << 10, // the request line, and with it the URL, included
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 500*time.Millisecond)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
	})
	err := server.Serve(l)
	if !stop() { // ctx ended: Serve returns as soon as Shutdown begins
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving on %s: %w", l.Addr(), err)
}

// Healthy is what /healthz answers with.
var Healthy = map[string]string{"status": "ok"}

// WriteJSON answers with x, which must be of a type that has a form in JSON.
func WriteJSON(w http.ResponseWriter, code int, x any) error {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false) // it is no HTML, and is read by people too
	if err := e.Encode(x); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = body.WriteTo(w) // the client has gone, or it has its answer
	return nil
}

// WriteError answers with {"error": ...}.
func WriteError(w http.ResponseWriter, code int, err error) {
	_ = WriteJSON(w, code, map[string]string{"error": Line(err.Error())}) // strings have a form
}
