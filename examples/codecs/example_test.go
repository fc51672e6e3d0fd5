package codecs_test

import (
	"encoding/binary"
	"fmt"
	"log"
	"time"

	"github.com/hamba/avro/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/examples/codecs"
	"github.com/tumblestream/tumble/source/kafka"
)

// framed writes the frame of a schema before a payload.
func framed(schema uint32, payload ...byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, schema), payload...)
}

// A click in Avro, whose schemas come from a registry by their number.
func Example_avro() {
	type click struct {
		UserID string    `avro:"user_id"`
		At     time.Time `avro:"at"`
	}
	schemas := map[uint32]avro.Schema{ // as the registry has them; a program fetches and keeps them
		17: avro.MustParse(`{"type":"record","name":"click","fields":[
			{"name":"user_id","type":"string"},
			{"name":"at","type":{"type":"long","logicalType":"timestamp-millis"}}]}`),
	}

	decode := kafka.Unmarshal(func(value []byte, v any) error {
		frame, err := codecs.ParseFrame(value)
		if err != nil {
			return err
		}
		schema, ok := schemas[frame.Schema]
		if !ok {
			return fmt.Errorf("the registry has no schema %d", frame.Schema)
		}
		return avro.Unmarshal(schema, frame.Payload, v)
	}, func(dst []tumble.Event, c *click) ([]tumble.Event, error) {
		return append(dst, tumble.Event{Key: c.UserID, Time: c.At}), nil
	})

	payload, err := avro.Marshal(schemas[17], click{"user_123", time.Date(2023, 10, 1, 12, 34, 56, 789e6, time.UTC)})
	if err != nil {
		log.Fatal(err)
	}
	for _, value := range [][]byte{framed(17, payload...), framed(18, payload...), payload} {
		events, err := decode(nil, kafka.Message{Value: value})
		if err != nil {
			fmt.Println("rejected:", err)
			continue
		}
		fmt.Println(events[0].Key, "at", events[0].Time.UTC())
	}
	// Output:
	// user_123 at 2023-10-01 12:34:56.789 +0000 UTC
	// rejected: the registry has no schema 18
	// rejected: the value has no frame of a schema registry
}

// An order in protocol buffers, which counts each of its items. A generated type stands
// where this has structpb.Struct, which every schema compiler knows.
func Example_protobuf() {
	type order = structpb.Struct

	decode := kafka.Unmarshal(func(value []byte, v any) error {
		frame, err := codecs.ParseFrame(value)
		if err != nil {
			return err
		}
		message, err := frame.Message()
		if err != nil {
			return err
		}
		if err := proto.Unmarshal(message, v.(proto.Message)); err != nil {
			// The library's own text differs from one build to the next, on purpose.
			return fmt.Errorf("schema %d: the payload is no message of the type", frame.Schema)
		}
		return nil
	}, func(dst []tumble.Event, o *order) ([]tumble.Event, error) {
		at := time.UnixMilli(int64(o.Fields["at"].GetNumberValue())).UTC()
		for _, item := range o.Fields["items"].GetListValue().GetValues() {
			dst = append(dst, tumble.Event{Key: item.GetStringValue(), Time: at})
		}
		return dst, nil
	})

	sent, err := structpb.NewStruct(map[string]any{"at": 1696163696789, "items": []any{"tea", "cup"}})
	if err != nil {
		log.Fatal(err)
	}
	message, err := proto.Marshal(sent)
	if err != nil {
		log.Fatal(err)
	}
	for _, value := range [][]byte{framed(4, append([]byte{0}, message...)...), framed(4, 2, 0), framed(4, 0, 0xff)} {
		events, err := decode(nil, kafka.Message{Value: value})
		if err != nil {
			fmt.Println("rejected:", err)
			continue
		}
		for _, ev := range events {
			fmt.Println(ev.Key, "at", ev.Time)
		}
	}
	// Output:
	// tea at 2023-10-01 12:34:56.789 +0000 UTC
	// cup at 2023-10-01 12:34:56.789 +0000 UTC
	// rejected: schema 4: the message is not of the first type
	// rejected: schema 4: the payload is no message of the type
}
