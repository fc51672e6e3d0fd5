package kafka_test

import (
	"fmt"

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
