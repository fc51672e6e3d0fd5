// Command counter is a service that counts the hits of pages, per minute, in its
// own memory. It loses none that it has accepted when it is stopped.
//
//	go run ./examples/counter
//	curl -X POST "http://localhost:8000/hit?page=home"
//	curl "http://localhost:8000/count?page=home"
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

func main() {
	addr := flag.String("addr", "localhost:8000", "`address` to serve on")
	window := flag.Duration("window", time.Minute, "`length` of a window")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("counter: ")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)

	hits := make(chan tumble.Event, 1024)
	source, err := channel.New(channel.Config{ID: "hits", Events: hits})
	check(err)
	counts := memory.New(memory.Config{})
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: counts, Window: tumble.Window{Size: *window}, Retention: 24 * time.Hour})
	check(err)
	counted := make(chan error, 1)
	go func() { counted <- pipeline.Run(context.Background()) }() // not ctx, with which hits would be left in the channel

	http.HandleFunc("POST /hit", func(w http.ResponseWriter, r *http.Request) {
		if page := r.URL.Query().Get("page"); page != "" {
			hits <- tumble.Event{Key: page, Time: time.Now()}
			w.WriteHeader(http.StatusAccepted)
		} else {
			http.Error(w, "page is missing", http.StatusBadRequest)
		}
	})
	http.HandleFunc("GET /count", func(w http.ResponseWriter, r *http.Request) {
		var n tumble.Count
		at, err := time.Parse(time.RFC3339, cmp.Or(r.URL.Query().Get("at"), time.Now().Format(time.RFC3339)))
		if err == nil {
			n, err = counts.Count(r.Context(), r.URL.Query().Get("page"), at)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"page": n.Key, "start": n.Start.UTC(), "hits": n.N, "state": n.State})
	})
	listener, err := net.Listen("tcp", *addr)
	check(err)
	server := &http.Server{ReadTimeout: 3 * time.Second, WriteTimeout: 3 * time.Second}
	go server.Serve(listener)
	log.Printf("on http://%s", listener.Addr())

	select {
	case err := <-counted:
		log.Fatal(err) // it cannot count any more
	case <-ctx.Done():
	}
	stop() // a second signal ends the process at once

	// The order that loses nothing. Once Shutdown has returned no request is being
	// served, so nobody sends to the channel. Once it is closed, Run counts the rest.
	check(server.Shutdown(context.Background()))
	close(hits)
	check(<-counted)
	log.Printf("counted %d hits", pipeline.Stats().Counted)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
