package kafka_test

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka"
)

func ExampleJSON() {
	decode := kafka.JSON("user_id", "timestamp")
	for _, value := range []string{
		`{"user_id":"user_123","timestamp":"2023-10-01T14:34:56.789+02:00","page":"/home"}`,
		`{"user":{"user_id":"user_123"},"timestamp":"2023-10-01T12:34:56Z"}`,
		`{"user_id":"user_123","timestamp":1696163696}`,
		`{"user_id":"user_123","timestamp":"2023-13-01T12:34:56Z"}`,
		`{"user_id":"user_123" "timestamp":"2023-10-01T12:34:56Z"}`,
	} {
		events, err := decode(nil, kafka.Message{Value: []byte(value)})
		if err != nil {
			fmt.Println("rejected:", err)
			continue
		}
		fmt.Println(events[0].Key, "at", events[0].Time)
	}
	// Output:
	// user_123 at 2023-10-01 12:34:56.789 +0000 UTC
	// rejected: field "user_id" is missing
	// rejected: field "timestamp" is a number, want an RFC 3339 string
	// rejected: field "timestamp": "2023-13-01T12:34:56Z" is not an RFC 3339 time: month out of range
	// rejected: offset 22: invalid character '"' after a field, where ',' or '}' should be
}

// Bytes that each customer was sent, from records that say when in milliseconds. With
// tumble.Config.Sum they are added up.
func ExampleFields() {
	decode := kafka.Fields{
		Key:   "customer.id",
		Time:  "at",
		Unit:  kafka.Milliseconds,
		N:     "bytes",
		Where: map[string][]string{"status": {"200", "206"}},
	}.Decode()
	for _, value := range []string{
		`{"customer":{"id":17},"at":1696163696789,"bytes":1400,"status":200}`,
		`{"customer":{"id":17},"at":1696163696789,"bytes":1400,"status":404}`,
		`{"customer":{"id":17},"at":1696163696789,"bytes":14.5,"status":200}`,
	} {
		events, err := decode(nil, kafka.Message{Value: []byte(value)})
		switch {
		case err != nil:
			fmt.Println("rejected:", err)
		case len(events) == 0:
			fmt.Println("skipped")
		default:
			fmt.Println(events[0].Key, "at", events[0].Time, "got", events[0].N)
		}
	}
	// Output:
	// 17 at 2023-10-01 12:34:56.789 +0000 UTC got 1400
	// skipped
	// rejected: field "bytes": "14.5" is not a whole number from 0 to 9007199254740991
}

// An order is one record with several keys. Another codec takes json.Unmarshal's
// place: for protocol buffers a function that calls proto.Unmarshal(data, v.(proto.Message)).
func ExampleUnmarshal() {
	type order struct {
		At    time.Time `json:"at"`
		Items []string  `json:"items"`
	}
	decode := kafka.Unmarshal(json.Unmarshal, func(dst []tumble.Event, o *order) ([]tumble.Event, error) {
		for _, item := range o.Items {
			dst = append(dst, tumble.Event{Key: item, Time: o.At})
		}
		return dst, nil
	})
	events, err := decode(nil, kafka.Message{Value: []byte(`{"at":"2023-10-01T12:34:56Z","items":["tea","cup","tea"]}`)})
	fmt.Println(len(events), events[2].Key, err)
	// Output: 3 tea <nil>
}
