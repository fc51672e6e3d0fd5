package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/stretchr/testify/require"
)

// A double of a transport hands the request a connection with a broker of its own
// at the other end.
type double func(conn net.Conn)

func (d double) RoundTrip(ctx context.Context, _ net.Addr, req kafkago.Request) (kafkago.Response, error) {
	here, there := net.Pipe()
	defer here.Close()
	go func() {
		defer there.Close()
		d(there)
	}()
	q := req.(*Request)
	if !q.Required(map[protocol.ApiKey]int16{protocol.Heartbeat: 4}) {
		return nil, nil
	}
	return q.RawExchange(here)
}

func client(d double) *Client {
	return &Client{Transport: d, Addr: kafkago.TCP("nowhere:9092"), ID: "test"}
}

func TestDo(t *testing.T) {
	ask := func(answer func(id []byte) []byte) (*Reader, error) {
		return client(func(conn net.Conn) {
			req := make([]byte, 64)
			n, _ := conn.Read(req)
			want := slices.Concat([]byte{0, 0, 0, 16, 0, 12, 0, 3}, req[8:12], []byte{0, 4}, []byte("test"), []byte{1, 2})
			if slices.Equal(want, req[:n]) {
				conn.Write(answer(req[8:12]))
			}
		}).Do(t.Context(), &Request{API: Heartbeat, Node: 7, Body: Appender{1, 2}})
	}
	a, err := ask(func(id []byte) []byte { return slices.Concat([]byte{0, 0, 0, 7}, id, []byte{1, 2, 3}) })
	require.NoError(t, err)
	require.Equal(t, 3, a.left)
	require.Equal(t, int8(1), a.Int8())
	require.Equal(t, int16(0x0203), a.Int16())
	require.NoError(t, a.Err())
	require.Zero(t, a.Int32())
	require.ErrorIs(t, a.Err(), ErrShort)

	// What a broker sends is never trusted: not its length, nor that it answers.
	for name, answer := range map[string]func(id []byte) []byte{
		"answer of -1 bytes":         func(id []byte) []byte { return slices.Concat([]byte{0xff, 0xff, 0xff, 0xff}, id) },
		"answer of 3 bytes":          func(id []byte) []byte { return slices.Concat([]byte{0, 0, 0, 3}, id) },
		"answer of 2147483647 bytes": func(id []byte) []byte { return slices.Concat([]byte{0x7f, 0xff, 0xff, 0xff}, id) },
		"answer of 67108865 bytes":   func(id []byte) []byte { return slices.Concat([]byte{4, 0, 0, 1}, id) },
		"EOF":                        func(id []byte) []byte { return slices.Concat([]byte{3, 0, 0, 0}, id, []byte{1}) },
		"unexpected EOF":             func(id []byte) []byte { return []byte{0, 0} },
		"closed the connection":      func(id []byte) []byte { return nil },
		"answer to request":          func(id []byte) []byte { return []byte{0, 0, 0, 4, 0x70, 0, 0, 0} },
	} {
		_, err := ask(answer)
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, "Heartbeat: broker 7 (of nowhere:9092)")
	}
}

// A taker takes an answer as it comes, and leaves some of it.
type taker struct {
	n    int
	took []byte
}

func (k *taker) ReadAnswer(r *Reader) {
	k.took = make([]byte, k.n)
	r.Full(k.took)
}

type pipe struct{ io.Reader }

func (p pipe) Write(b []byte) (int, error) { return len(b), nil }

func TestInto(t *testing.T) {
	k := &taker{n: 2}
	q := &Request{API: Fetch, Into: k}
	rest := strings.NewReader("\x00\x00\x00\x09tmbl\x00abcdnext")
	_, err := q.RawExchange(pipe{rest})
	require.NoError(t, err)
	require.Equal(t, "ab", string(k.took))
	require.Equal(t, 4, rest.Len(), "the rest of the answer is passed over, the next one is not")

	// The frame around an answer is not believed either.
	for name, raw := range map[string]string{
		"nothing": "", "short": "\x00\x00", "negative": "\xff\xff\xff\xff", "tiny": "\x00\x00\x00\x03abc",
		"huge": "HTTP/1.1", "other answer": "\x00\x00\x00\x08abcdefgh", "cut off": "\x00\x00\x00\x50tmbl\x00\x00",
	} {
		_, err := (&Request{API: Fetch, Into: &taker{n: 9}}).RawExchange(pipe{strings.NewReader(raw)})
		require.Error(t, err, name)
		require.NotErrorIs(t, err, io.EOF, name) // to the transport that would be a peaceful end
	}
}

// Without an end of ctx the error says whom was waited for, and how long. After
// one it is ctx's.
func TestDoTimesOut(t *testing.T) {
	stuck := &Client{Transport: waiting{}, Addr: kafkago.TCP("nowhere:9092")}
	_, err := stuck.Do(t.Context(), &Request{API: Metadata, Node: AnyNode, Timeout: time.Millisecond})
	require.ErrorContains(t, err, "Metadata: no answer from nowhere:9092 within 1ms")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("elsewhere"))
	_, err = stuck.Do(ctx, &Request{API: Metadata, Node: AnyNode, Timeout: time.Millisecond})
	require.Equal(t, context.Canceled, err)
}

type waiting struct{}

func (waiting) RoundTrip(ctx context.Context, _ net.Addr, _ kafkago.Request) (kafkago.Response, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// The transport's versions end where kafka-go's own do, which is no sign of an
// old broker.
func TestRequired(t *testing.T) {
	for _, c := range []struct {
		api  API
		told int16
		old  bool
	}{
		{Metadata, protocol.Metadata.MaxVersion(), false},
		{Metadata, protocol.Metadata.MaxVersion() - 1, true},
		{Fetch, protocol.Fetch.MaxVersion(), false},
		{Heartbeat, 3, false},
		{Heartbeat, 2, true},
		{OffsetForLeaderEpoch, 0, false}, // kafka-go knows no version of it
	} {
		q := &Request{API: c.api}
		require.True(t, q.Required(map[protocol.ApiKey]int16{c.api.Key: c.told}))
		_, err := q.RawExchange(pipe{strings.NewReader("")})
		require.Equal(t, c.old, errors.Is(err, ErrOld), "%v %d", c.api, c.told)
	}
}

func TestCodec(t *testing.T) {
	var b Appender
	b.Int8(-1)
	b.Int16(-2)
	b.Int32(-3)
	b.Int64(-4)
	b.Text("text")
	b.Nullable("")
	b.Nullable("given")
	b.Bytes([]byte("bytes"))
	b.Int32(-1)
	b.Compact("compact")
	b.Count(2)
	b = append(b, 1, 2)
	b.Int32(2)
	b.Int32(5)
	b.Int32(6)
	b.Tags()
	b = append(b, 2, 7, 1, 'x', 9, 0) // tags 7 and 9
	r := NewReader(b)
	require.EqualValues(t, -1, r.Int8())
	require.EqualValues(t, -2, r.Int16())
	require.EqualValues(t, -3, r.Int32())
	require.EqualValues(t, -4, r.Int64())
	require.Equal(t, "text", r.Text())
	require.Empty(t, r.Text())
	require.Equal(t, "given", r.Text())
	require.Equal(t, "bytes", string(r.Bytes()))
	require.Nil(t, r.Bytes())
	require.Equal(t, "compact", r.Compact())
	n := 0
	for range r.CompactArray() {
		n += int(r.Int8())
	}
	require.Equal(t, 3, n)
	require.Equal(t, []int32{5, 6}, r.Int32s())
	require.False(t, r.Tagged(7))
	require.True(t, r.Tagged(7))
	r.End()
	require.NoError(t, r.Err())

	r = NewReader([]byte{1, 2, 3})
	r.Int8()
	r.End()
	require.ErrorContains(t, r.Err(), "longer than it should be")

	require.Len(t, appendText(strings.Repeat("x", 40_000)), 2+32767)
}

func appendText(s string) (b Appender) { b.Text(s); return b }

// A length that goes beyond the message is an error, and no negative one is taken
// for null.
func TestShort(t *testing.T) {
	for name, read := range map[string]func(r *Reader){
		"text":           func(r *Reader) { r.Text() },
		"negative text":  func(r *Reader) { r.Int16(); r.Text() },
		"bytes":          func(r *Reader) { r.Bytes() },
		"array":          func(r *Reader) { r.Array() },
		"numbers":        func(r *Reader) { r.Int8(); r.Int8(); r.Int8(); r.Int8(); r.Int32s() },
		"compact":        func(r *Reader) { r.Compact() },
		"negative bytes": func(r *Reader) { r.Int16(); r.Bytes() },
		"size":           func(r *Reader) { r.Size() },
		"skip":           func(r *Reader) { r.Skip(99) },
		"negative skip":  func(r *Reader) { r.Skip(-2) },
		"tag":            func(r *Reader) { r.Tags() },
		"full":           func(r *Reader) { r.Full(make([]byte, 99)) },
	} {
		r := NewReader([]byte{0x70, 1, 0x90, 0, 0, 2, 0x60, 1})
		read(r)
		require.ErrorIs(t, r.Err(), ErrShort, name)
		require.Zero(t, r.Int64(), name)
		for range r.Array() {
			require.Fail(t, name)
		}
	}
	r := NewReader([]byte{0, 0, 0, 6, 1, 2, 3, 4, 5, 6})
	n := 0
	for range r.Array() {
		r.Int32()
		n++
	}
	require.Equal(t, 2, n, "the second of six cannot be read, and there is no third")

	r = NewReader([]byte(strings.Repeat("\xff", 20)))
	require.Equal(t, -1, r.Size())
	require.ErrorContains(t, r.Err(), "varint that does not end")
}

// A connection's deadline is that of ctx, and may be noticed before it.
func TestEnded(t *testing.T) {
	timeout := &net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}
	soon, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.True(t, ended(passed{soon}, timeout))
	require.True(t, ended(soon, io.EOF))
	far, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	require.False(t, ended(far, timeout), "it is the timeout of the request")
	require.False(t, ended(t.Context(), timeout))
}

// passed is a context whose deadline has passed, and that is yet to end.
type passed struct{ context.Context }

func (passed) Deadline() (time.Time, bool) { return time.Now(), true }
