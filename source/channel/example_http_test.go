package channel_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

// clickServer turns each request into an event. A request that it answers with
// 202 is counted, also if the service is stopped right then.
type clickServer struct {
	events chan tumble.Event

	mu     sync.RWMutex // held for reading to send to events, for writing to close it
	closed bool
}

func (s *clickServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		http.Error(w, "stopping", http.StatusServiceUnavailable)
		return
	}
	select {
	case s.events <- tumble.Event{Key: r.FormValue("user"), Time: time.Now()}:
		w.WriteHeader(http.StatusAccepted)
	case <-r.Context().Done(): // the client left, or the service stops
		http.Error(w, "not counted, try again", http.StatusServiceUnavailable)
	}
}

// close ends the log. Shutdown may leave a handler behind, which is refused.
func (s *clickServer) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	close(s.events)
}

// run serves until ctx ends, or the pipeline fails. Then it stops in the one
// order that loses nothing: requests, events, counts.
func (s *clickServer) run(ctx context.Context, l net.Listener, pipeline *tumble.Pipeline) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Not ctx: the pipeline returns when it has counted everything. It is only
	// told to give up when that takes too long, because the store is away, say.
	counting, giveUp := context.WithCancel(context.Background())
	defer giveUp()
	counted, served := make(chan error, 1), make(chan error, 1)
	go func() { counted <- pipeline.Run(counting); stop() }()
	server := &http.Server{Handler: s, BaseContext: func(net.Listener) context.Context { return ctx }}
	go func() { served <- server.Serve(l); stop() }()

	<-ctx.Done()
	defer time.AfterFunc(20*time.Second, giveUp).Stop()
	shutdown, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(shutdown); err != nil {
		server.Close()
	}
	s.close()
	err := <-counted
	if one := <-served; one != http.ErrServerClosed {
		err = errors.Join(err, one)
	}
	return err
}

// A service that counts its requests and loses none that it has accepted.
func Example_httpService() {
	clicks := &clickServer{events: make(chan tumble.Event, 1024)}
	source, err := channel.New(channel.Config{ID: "pod-0", Events: clicks.events})
	if err != nil {
		panic(err)
	}
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: memory.New(memory.Config{}), Window: tumble.Window{Size: time.Minute}})
	if err != nil {
		panic(err)
	}
	l, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ended := make(chan error, 1)
	go func() { ended <- clicks.run(ctx, l, pipeline) }()

	for range 3 {
		answer, err := http.Post("http://"+l.Addr().String()+"/?user=user_1", "", nil)
		if err != nil {
			panic(err)
		}
		answer.Body.Close()
		fmt.Println(answer.Status)
	}
	stop() // as SIGTERM would
	if err := <-ended; err != nil {
		panic(err)
	}
	fmt.Println("counted:", pipeline.Stats().Counted)
	// Output:
	// 202 Accepted
	// 202 Accepted
	// 202 Accepted
	// counted: 3
}
