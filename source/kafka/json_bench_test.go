package kafka

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tumblestream/tumble"
)

const click = `{"user_id":"user_123","timestamp":"2023-10-01T12:34:56.789Z","page":"/home"}`

// BenchmarkJSON decodes one document per operation, beside encoding/json into a
// struct of the two fields and time.Parse.
func BenchmarkJSON(b *testing.B) {
	nested := strings.Repeat(`{"a":[1,`, 50) + "null" + strings.Repeat(`]}`, 50)
	for _, bench := range []struct{ name, doc string }{
		{"click", click},
		{"spaced", "{\n  \"user_id\": \"user_123\",\n  \"timestamp\": \"2023-10-01T14:34:56.789123+02:00\",\n  \"page\": \"/home\"\n}\n"},
		{"escaped", `{"user\u005fid":"user\t\ud83d\ude00","timestamp":"2023-10-01T12:34:56\u002e789Z","page":"\/home"}`},
		{"numbers", `{"a":12345,"b":-0.5e+10,"c":true,"d":false,"e":null,"f":1696163696789,"user_id":"user_123","timestamp":"2023-10-01T12:34:56.789Z"}`},
		{"nested", `{"context":` + nested + `,` + click[1:]},
		{"long", `{"referrer":"` + strings.Repeat("https://example.com/some/page?x=y&", 60) + `",` + click[1:]},
		{"unicode", `{"title":"` + strings.Repeat("Grüße aus Köln, 東京から", 30) + `",` + click[1:]},
	} {
		m := Message{Value: []byte(bench.doc)}
		b.Run(bench.name, func(b *testing.B) {
			decode := JSON("user_id", "timestamp")
			var events []tumble.Event
			b.SetBytes(int64(len(m.Value)))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if events, err = decode(events[:0], m); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bench.name+"/encoding-json", func(b *testing.B) {
			b.SetBytes(int64(len(m.Value)))
			b.ReportAllocs()
			for b.Loop() {
				var v struct { // Time is no time.Time, which takes no escapes
					Key  string `json:"user_id"`
					Time string `json:"timestamp"`
				}
				if err := json.Unmarshal(m.Value, &v); err != nil {
					b.Fatal(err)
				}
				if _, err := time.Parse(time.RFC3339Nano, v.Time); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkJSONClicks decodes clicks that all differ, as a consumer does: the
// processor cannot learn the one document.
func BenchmarkJSONClicks(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	pages := []string{"/", "/home", "/cart", "/products/17", "/search", "/checkout/payment"}
	at := time.Date(2023, 10, 1, 12, 34, 56, 0, time.UTC)
	clicks := make([]Message, 50_000)
	size := 0
	for i := range clicks {
		at = at.Add(time.Duration(r.IntN(100)) * time.Millisecond)
		clicks[i].Value = fmt.Appendf(nil, `{"user_id":"user_%d","timestamp":%q,"page":%q}`,
			r.IntN(10_000), at.Format(time.RFC3339Nano), pages[r.IntN(len(pages))])
		size += len(clicks[i].Value)
	}
	decode := JSON("user_id", "timestamp")
	var events []tumble.Event
	b.SetBytes(int64(size / len(clicks)))
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		var err error
		if events, err = decode(events[:0], clicks[n%len(clicks)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRFC3339(b *testing.B) {
	for _, s := range []string{"2023-10-01T12:34:56Z", "2023-10-01T12:34:56.789Z", "2023-10-01T14:34:56.789123456+02:00"} {
		text := []byte(s)
		b.Run(s, func(b *testing.B) {
			for b.Loop() {
				if _, problem := parseRFC3339(text); problem != "" {
					b.Fatal(problem)
				}
			}
		})
		b.Run(s+"/time.Parse", func(b *testing.B) {
			for b.Loop() {
				if _, err := time.Parse(time.RFC3339Nano, string(text)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
