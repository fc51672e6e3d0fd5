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

// Listen listens on addr. Its error names addr.
func Listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	return l, nil
}

// URL returns the address of l, which listens on addr: the host as it was written,
// and the real port.
func URL(l net.Listener, addr string) string {
	host, _, _ := net.SplitHostPort(addr)
	if host == "" {
		host = "localhost"
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return "http://" + net.JoinHostPort(host, port)
}

// Serve answers requests on l, and closes it, until ctx ends. Requests in progress
// then have half a second to finish. A handler with a method Close is told by it.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       60 * time.Second,
		MaxHeaderBytes:    64 << 10, // the URL included
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	if streams, ok := h.(interface{ Close() }); ok { // that would go on for ever
		server.RegisterOnShutdown(streams.Close)
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
	if !stop() { // Serve returns when Shutdown begins, not when it ends
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving on %s: %w", l.Addr(), err)
}

// Healthy is the answer of /healthz and /readyz while all is well.
var Healthy = map[string]string{"status": "ok"}

// WriteJSON answers with x. Its error says that x has no form in JSON; nothing is
// written then.
func WriteJSON(w http.ResponseWriter, code int, x any) error {
	var body bytes.Buffer
	e := json.NewEncoder(&body)
	e.SetEscapeHTML(false) // people read it too
	if err := e.Encode(x); err != nil {
		return err
	}
	Write(w, code, body.Bytes())
	return nil
}

// Write answers with a text that is JSON.
func Write(w http.ResponseWriter, code int, text []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(text) // an error is the client's
}

// WriteError answers with {"error": ...}.
func WriteError(w http.ResponseWriter, code int, err error) {
	_ = WriteJSON(w, code, map[string]string{"error": Line(err.Error())}) // strings have a form
}
