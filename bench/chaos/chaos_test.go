package main

import (
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTags(t *testing.T) {
	require.Equal(t, []string{"460", "16", "461", "17"}, tags[:4], "as the layout's documentation names them")
}

func TestBuckets(t *testing.T) {
	for n := 1; n < 40; n++ {
		used := map[int]bool{}
		for i := range 5000 {
			at := bucketOf(string(rune(i+300)), n)
			require.Less(t, at, n)
			used[at] = true
			if more := bucketOf(string(rune(i+300)), n+1); more != at {
				require.Equal(t, n, more, "a split moves fields to the new bucket alone")
			}
		}
		require.Len(t, used, n)
	}
}

func TestCompare(t *testing.T) {
	want := map[count]int64{{1000, "a"}: 3, {1000, "b"}: 5, {0, "gone"}: 1}
	have := func(change func(h *held)) *verdict {
		h := &held{counts: map[count]int64{{1000, "a"}: 3, {1000, "b"}: 5}, window: 100, floor: 500}
		change(h)
		v := &verdict{}
		v.compare(0, h, want)
		return v
	}
	v := have(func(*held) {})
	require.NoError(t, v.err())
	require.EqualValues(t, 2, v.counts, "what is past retention does not count")
	require.EqualValues(t, 8, v.events)
	v = have(func(h *held) { h.counts[count{1000, "a"}] = 2 })
	require.ErrorContains(t, v.err(), "a: 2, should be 3")
	require.EqualValues(t, 1, v.missing)
	v = have(func(h *held) { h.counts[count{1000, "c"}] = 2 })
	require.ErrorContains(t, v.err(), "c: 2, should not be there")
	require.EqualValues(t, 2, v.extra)
	require.Error(t, have(func(h *held) { delete(h.counts, count{1000, "b"}) }).err())
	require.Error(t, have(func(h *held) { h.floor = noMark }).err())
	require.Error(t, have(func(h *held) { h.faults = []string{"a bucket too many"} }).err())
}

func TestBooks(t *testing.T) {
	b := books{Read: 6, Counted: 3, Rejected: 1, Pending: 2, Late: 3}
	require.True(t, b.closed())
	b.add(books{Read: 1})
	require.False(t, b.closed())
}

// echo answers each byte with a hundred.
func echo(t *testing.T) (port int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				one := make([]byte, 1)
				for {
					if _, err := c.Read(one); err != nil {
						return
					}
					c.Write(make([]byte, 100))
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}

func dialed(t *testing.T, p *proxy) net.Conn {
	c, err := net.Dial("tcp", local(p.port))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = c.Write([]byte{1})
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 100))
	require.NoError(t, err)
	return c
}

func newTestProxy(t *testing.T) *proxy {
	all := &ports{next: 22000 + rand.IntN(50)*10}
	p, err := newProxy(all.get(), local(echo(t)))
	require.NoError(t, err)
	return p
}

func TestCutInTheMiddle(t *testing.T) {
	p := newTestProxy(t)
	c := dialed(t, p)
	go p.cutAll(false)
	time.Sleep(100 * time.Millisecond)
	_, err := c.Write([]byte{1})
	require.NoError(t, err)
	n, err := io.ReadFull(c, make([]byte, 100))
	require.Error(t, err)
	require.Less(t, n, 100)
	dialed(t, p) // the next one is well
}

func TestSilence(t *testing.T) {
	p := newTestProxy(t)
	c := dialed(t, p)
	began := time.Now()
	go p.silence(500*time.Millisecond, false)
	time.Sleep(50 * time.Millisecond)
	_, err := c.Write([]byte{1})
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 100))
	require.NoError(t, err, "it comes later")
	require.GreaterOrEqual(t, time.Since(began), 500*time.Millisecond)
	p.silence(time.Millisecond, true)
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
}

// TestSchedule has a seed choose the same faults again.
func TestSchedule(t *testing.T) {
	chosen := func(seed uint64) (names []string) {
		l := &lab{seed: seed, fleets: []*fleet{{name: "single", store: &store{}}, {name: "cluster", store: &store{cluster: true}}}}
		for _, b := range l.breakers() {
			for range 20 {
				names = append(names, b.choose().name)
			}
		}
		return names
	}
	require.Equal(t, chosen(1), chosen(1))
	require.NotEqual(t, chosen(1), chosen(2))
}

// TestSteady judges made-up samples.
func TestSteady(t *testing.T) {
	run := func(change func(i int, s *sample)) error {
		var first, last []*sample
		for i := range 100 {
			s := &sample{goroutines: 50, fds: 30, heap: 4e6, redis: 6e6}
			change(i, s)
			switch {
			case i < 20:
				first = append(first, s)
			case i >= 80:
				last = append(last, s)
			}
		}
		lines, err := steady(first, last)
		require.Len(t, lines, 1+len(growth))
		return err
	}
	require.NoError(t, run(func(int, *sample) {}))
	require.NoError(t, run(func(i int, s *sample) {
		if i%5 == 0 { // now and then much, and at no time more than at another
			s.goroutines, s.fds, s.heap, s.redis = 200, 200, 40e6, 40e6
		}
	}))
	require.ErrorContains(t, run(func(i int, s *sample) { s.goroutines += int64(i / 5) }), "goroutines")
	require.ErrorContains(t, run(func(i int, s *sample) { s.fds += int64(i / 5) }), "file descriptors")
	require.ErrorContains(t, run(func(i int, s *sample) { s.heap += int64(i) * 30e3 }), "live heap")
	require.ErrorContains(t, run(func(i int, s *sample) { s.redis += int64(i) * 20e3 }), "Redis")
	_, err := steady(make([]*sample, fewest), nil)
	require.ErrorContains(t, err, "too few")
}

// TestSoakSchedule has every fault of a soak be one that there is.
func TestSoakSchedule(t *testing.T) {
	l := &lab{seed: 1, soak: time.Minute, fleets: []*fleet{{name: "single", store: &store{}}}}
	all := l.breakers()
	require.Len(t, all, 3)
	for _, b := range all {
		require.GreaterOrEqual(t, len(b.faults), 2)
		for _, f := range b.faults {
			require.NotNil(t, f.run)
			require.NotEmpty(t, f.name)
		}
	}
}
