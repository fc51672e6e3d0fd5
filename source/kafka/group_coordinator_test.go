package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// coordinator is a Transport with a group's coordinator at its other end: it
// admits one member, as the leader, until a test tells it otherwise. What it
// reads and writes goes through another client's code.
type coordinator struct {
	t testing.TB

	mu      sync.Mutex
	answers map[int16]func(ctx context.Context, n int, req kmsg.Request) (kmsg.Response, error) // nil, nil: as usual
	seen    map[int16][]seenRequest
	own     []byte // the member's assignment
	id      int    // of the member
}

type seenRequest struct {
	kmsg.Request
	at time.Time
}

func newCoordinator(t testing.TB) *coordinator {
	return &coordinator{
		t:       t,
		answers: make(map[int16]func(context.Context, int, kmsg.Request) (kmsg.Response, error)),
		seen:    make(map[int16][]seenRequest),
	}
}

// on answers the n-th request of a kind, from 0 on.
func on[Q kmsg.Request, R kmsg.Response](c *coordinator, answer func(ctx context.Context, n int, req Q) (R, error)) {
	var q Q
	key := q.Key()
	c.answers[key] = func(ctx context.Context, n int, req kmsg.Request) (kmsg.Response, error) {
		res, err := answer(ctx, n, req.(Q))
		if any(res) == any(*new(R)) {
			return nil, err
		}
		return res, err
	}
}

func (c *coordinator) requests(key kmsg.Key) []seenRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.seen[int16(key)])
}

func (c *coordinator) RoundTrip(ctx context.Context, _ net.Addr, req kafkago.Request) (kafkago.Response, error) {
	q := req.(*wire.Request)
	return q.RawExchange(&exchange{c: c, ctx: ctx, key: int16(q.Key), version: q.Version})
}

// An exchange is one request and its answer on a connection to the coordinator.
type exchange struct {
	c            *coordinator
	ctx          context.Context
	key, version int16
	request      []byte
	answer       *bytes.Reader
}

func (e *exchange) Write(b []byte) (int, error) {
	e.request = append(e.request, b...)
	return len(b), nil
}

func (e *exchange) Read(b []byte) (int, error) {
	if e.answer == nil {
		body, err := e.c.exchange(e.ctx, e.key, e.version, e.request)
		if err != nil {
			return 0, err
		}
		e.answer = bytes.NewReader(body)
	}
	return e.answer.Read(b)
}

func (c *coordinator) exchange(ctx context.Context, key, version int16, raw []byte) ([]byte, error) {
	q := kmsg.RequestForKey(key)
	q.SetVersion(version)
	head := binary.BigEndian.AppendUint32(nil, uint32(len(raw)-4))
	head = binary.BigEndian.AppendUint16(head, uint16(key))
	head = binary.BigEndian.AppendUint16(head, uint16(version))
	head = append(head, raw[8:12]...)
	head = append(head, "\x00\x04test"...)
	if q.IsFlexible() {
		head = append(head, 0)
	}
	require.Equal(c.t, head, raw[:len(head)])
	body := raw[len(head):]
	require.NoError(c.t, q.ReadFrom(body))
	require.Equal(c.t, body, q.AppendTo(nil), "nothing more and nothing else than the request")

	c.mu.Lock()
	n := len(c.seen[q.Key()])
	c.seen[q.Key()] = append(c.seen[q.Key()], seenRequest{q, time.Now()})
	answer := c.answers[q.Key()]
	c.mu.Unlock()

	var res kmsg.Response
	var err error
	if answer != nil {
		res, err = answer(ctx, n, q)
	}
	if res == nil && err == nil {
		res = c.usual(q)
	}
	if err != nil {
		return nil, err
	}
	res.SetVersion(version)
	b := append(make([]byte, 4), raw[8:12]...)
	if q.IsFlexible() {
		b = append(b, 0)
	}
	b = res.AppendTo(b)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b, nil
}

func (c *coordinator) usual(q kmsg.Request) kmsg.Response {
	c.mu.Lock()
	defer c.mu.Unlock()
	res := q.ResponseKind()
	switch q := q.(type) {
	case *kmsg.FindCoordinatorRequest:
		res.(*kmsg.FindCoordinatorResponse).NodeID = 7
	case *kmsg.JoinGroupRequest:
		res := res.(*kmsg.JoinGroupResponse)
		res.MemberID, res.LeaderID, res.Generation = q.MemberID, q.MemberID, int32(len(c.seen[q.Key()]))
		res.Protocol = kmsg.StringPtr(groupProtocol)
		if q.MemberID == "" {
			c.id++
			res.MemberID = "m" + string(rune('0'+c.id))
			if q.InstanceID == nil {
				res.ErrorCode = int16(kafkago.MemberIDRequired)
				break
			}
			res.LeaderID = res.MemberID
		}
		m := kmsg.NewJoinGroupResponseMember()
		m.MemberID, m.InstanceID, m.ProtocolMetadata = res.MemberID, q.InstanceID, q.Protocols[0].Metadata
		res.Members = append(res.Members, m)
	case *kmsg.SyncGroupRequest:
		for _, a := range q.GroupAssignment {
			if a.MemberID == q.MemberID {
				c.own = a.MemberAssignment
			}
		}
		res.(*kmsg.SyncGroupResponse).MemberAssignment = c.own
	}
	return res
}

func failWith[R kmsg.Response](res R, code kafkago.Error) (R, error) {
	switch res := any(res).(type) {
	case *kmsg.HeartbeatResponse:
		res.ErrorCode = int16(code)
	case *kmsg.JoinGroupResponse:
		res.ErrorCode = int16(code)
	case *kmsg.SyncGroupResponse:
		res.ErrorCode = int16(code)
	case *kmsg.FindCoordinatorResponse:
		res.ErrorCode, res.NodeID = int16(code), -1
	}
	return res, nil
}

func testConfig(c *coordinator) groupConfig {
	return groupConfig{
		wire: wire.Client{Transport: c, Addr: kafkago.TCP("nowhere:9092"), ID: "test"}, id: "g", topic: "clicks",
		partitions: func(context.Context) (int, error) { return 3, nil },
		logger:     slog.New(slog.DiscardHandler),
	}
}

// testMember runs a group and records what it served.
type testMember struct {
	g      *group
	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done

	mu     sync.Mutex
	served []served

	drain time.Duration // how long serve goes on after its ctx ended
}

// served is an assignment, and when it was in force.
type served struct {
	assignment
	from, ended time.Time
}

func startMember(t testing.TB, cfg groupConfig, drain time.Duration) *testMember {
	ctx, cancel := context.WithCancel(context.Background())
	m := &testMember{g: newGroup(cfg), cancel: cancel, done: make(chan struct{}), drain: drain}
	go func() {
		defer close(m.done)
		m.err = m.g.run(ctx, m.serve)
	}()
	t.Cleanup(func() {
		cancel()
		<-m.done
	})
	return m
}

func (m *testMember) serve(ctx context.Context, shares <-chan assignment) error {
	for {
		select {
		case <-ctx.Done():
			m.note(nil)
			time.Sleep(m.drain)
			return nil
		case a := <-shares:
			m.note(&a)
		}
	}
}

// note writes down that an assignment has ended, and the next one, if there is one.
func (m *testMember) note(next *assignment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := len(m.served); n > 0 && m.served[n-1].ended.IsZero() {
		m.served[n-1].ended = time.Now()
	}
	if next != nil {
		m.served = append(m.served, served{assignment: *next, from: time.Now()})
	}
}

func (m *testMember) generations() []served {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.served)
}

// wait waits for run to end by itself.
func (m *testMember) wait(t testing.TB, within time.Duration) {
	t.Helper()
	select {
	case <-m.done:
	case <-time.After(within):
		require.FailNow(t, "the member goes on")
	}
}

// stop ends the member and returns how long that took, and run's error.
func (m *testMember) stop() (time.Duration, error) {
	at := time.Now()
	m.cancel()
	<-m.done
	return time.Since(at), m.err
}
