package web_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/web"
)

// The API and the page of a service that counts requests of hosts, under /counts/.
func Example() {
	counts := memory.New(memory.Config{}) // or redis.New
	var pipeline *tumble.Pipeline         // of this process; leave Stats out if there is none
	config := web.Config{Counts: counts, Item: "requests", Key: "host", Keys: "hosts"}
	if pipeline != nil {
		config.Stats = pipeline.Stats
	}
	h, err := web.New(config)
	if err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/counts/", http.StripPrefix("/counts", h))
	server := httptest.NewServer(mux) // or http.Server, whose Shutdown then waits for no page:
	server.Config.RegisterOnShutdown(h.Close)
	defer server.Close()

	answer, err := http.Get(server.URL + "/counts/requests/example.org/2023-10-01T12:34")
	if err != nil {
		panic(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	fmt.Printf("%s %v\n", body, err)
	// Output:
	// {"host":"example.org","minute":"2023-10-01T12:34","requests":0,"state":"open"}
	//  <nil>
}
