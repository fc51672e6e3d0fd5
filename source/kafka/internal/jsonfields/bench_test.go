package jsonfields

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// BenchmarkDecoder decodes one document per operation, beside encoding/json into a
// struct of the two fields and time.Parse.
func BenchmarkDecoder(b *testing.B) {
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
		doc := []byte(bench.doc)
		b.Run(bench.name, func(b *testing.B) {
			d := keyTime("user_id", "timestamp")
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := d.Decode(doc, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(bench.name+"/encoding-json", func(b *testing.B) {
			b.SetBytes(int64(len(doc)))
			b.ReportAllocs()
			for b.Loop() {
				var v struct { // Time is no time.Time, which takes no escapes
					Key  string `json:"user_id"`
					Time string `json:"timestamp"`
				}
				if err := json.Unmarshal(doc, &v); err != nil {
					b.Fatal(err)
				}
				if _, err := time.Parse(time.RFC3339Nano, v.Time); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkClicks decodes clicks that all differ, so that the branch predictor
// cannot learn one document.
func BenchmarkClicks(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	pages := []string{"/", "/home", "/cart", "/products/17", "/search", "/checkout/payment"}
	at := time.Date(2023, 10, 1, 12, 34, 56, 0, time.UTC)
	clicks := make([][]byte, 50_000)
	size := 0
	for i := range clicks {
		at = at.Add(time.Duration(r.IntN(100)) * time.Millisecond)
		clicks[i] = fmt.Appendf(nil, `{"user_id":"user_%d","timestamp":%q,"page":%q}`,
			r.IntN(10_000), at.Format(time.RFC3339Nano), pages[r.IntN(len(pages))])
		size += len(clicks[i])
	}
	d := keyTime("user_id", "timestamp")
	b.SetBytes(int64(size / len(clicks)))
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if _, _, err := d.Decode(clicks[n%len(clicks)], int64(n)); err != nil {
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
