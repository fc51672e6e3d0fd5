package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestClicks(t *testing.T) {
	stream := clicks{n: 100_000, users: 10_000, seed: 7}
	var buf []byte
	last := epoch
	disorder := false
	for i, k := range stream.all() {
		buf = k.appendJSON(buf[:0])
		require.GreaterOrEqual(t, len(buf), 80, "%s", buf)
		require.LessOrEqual(t, len(buf), 94, "%s", buf)
		require.False(t, k.at.Before(epoch))
		require.True(t, k.at.Before(epoch.Add(minutes*time.Minute)))
		require.Less(t, last.Sub(k.at), 2*jitter, "click %d", i)
		disorder = disorder || k.at.Before(last)
		last = k.at
	}
	require.True(t, disorder)
	require.Equal(t, stream.truth(5000), stream.truth(5000), "the same each time")
	require.NotEqual(t, stream.truth(5000), clicks{100_000, 10_000, 8}.truth(5000))
}

func TestCompare(t *testing.T) {
	stream := clicks{n: 1000, users: 50, seed: 1}
	want, got := stream.truth(1000), newTally(50)
	for i, k := range stream.all() {
		if i != 17 {
			require.NoError(t, got.add(userName(k.user), k.at.Truncate(time.Minute), 1))
		}
	}
	require.ErrorContains(t, got.compare(want), "1 of")
	require.ErrorContains(t, got.compare(want), "1 clicks missing, 0 too many")

	for i, k := range stream.all() {
		if i == 17 {
			require.NoError(t, got.add(userName(k.user), k.at, 1))
		}
	}
	require.NoError(t, got.compare(want))

	require.NoError(t, got.add("user_0003", epoch, 1))
	require.ErrorContains(t, got.compare(want), "0 clicks missing, 1 too many")

	require.Error(t, got.add("user_0050", epoch, 1))
	require.Error(t, got.add("user_0001", epoch.Add(-time.Second), 1))
	require.Error(t, got.add("user_0001", epoch.Add(time.Hour), 1))
	require.Error(t, got.add("nobody", epoch, 1))
}

func TestFollow(t *testing.T) {
	follow := func(said string) (usage, *tally, error) {
		var u usage
		got := newTally(10)
		err := follow(strings.NewReader(said), io.NopCloser(nil), os.Getpid(), &u, got)
		return u, got, err
	}
	u, got, err := follow("first\ndone 5\ncount user_0001 2026-03-02T12:03:00Z 5\n")
	require.NoError(t, err)
	require.Equal(t, 5, u.events)
	require.EqualValues(t, 5, got.counts[3*10+1])

	for _, said := range []string{
		"", "first\n", "done 5\n", "first\ndone\n", "first\ndone x\n", "first\ndone 5\nhello\n",
		"first\ndone 5\ncount user_0001 today 5\n", "first\ndone 5\ncount user_0011 2026-03-02T12:03:00Z 5\n",
	} {
		_, _, err := follow(said)
		require.Error(t, err, "%q", said)
	}
}

func TestSpread(t *testing.T) {
	require.Equal(t, "-", spread(nil))
	require.Equal(t, "2.00 (1.00-30.0)", spread([]float64{1, 2, 30}))
	require.Equal(t, "1.50M (12k-2.99M)", spread([]float64{12_345, 1.5e6, 2.99e6}))
	require.Equal(t, "0.250 (0.200-0.300)", spread([]float64{0.2, 0.3}), "between the two in the middle")
}

func TestTable(t *testing.T) {
	all := contenders()
	row := func(name, kind string, cpu time.Duration) *entry {
		for _, c := range all {
			if c.name == name {
				return &entry{contender: c, kind: kind, usages: []usage{{events: 1000, took: time.Second, cpu: cpu}}}
			}
		}
		t.Fatalf("no contender %s", name)
		return nil
	}
	absent := row("flink", "plain", 0)
	absent.usages, absent.missing = nil, "there is no java"
	wrong := row("franz-go-loop", "plain", 0)
	wrong.usages, wrong.err = nil, io.ErrUnexpectedEOF
	var out bytes.Buffer
	printTable(&out, clicks{1000, 10, 1}, []*entry{row("tumble", "plain", time.Millisecond), row("franz-go-poll", "plain", 3*time.Millisecond), absent, wrong})
	line := func(name string) string {
		for l := range strings.Lines(out.String()) {
			if strings.HasPrefix(l, "| "+name) {
				return l
			}
		}
		return ""
	}
	require.Regexp(t, `\| 1\.00 .*\| right \|`, line("tumble"))
	require.Regexp(t, `\| 3\.00 .*\| none \|`, line("franz-go-poll"))
	require.Contains(t, line("flink"), "did not run: there is no java")
	require.Contains(t, line("franz-go-loop"), "FAILED: unexpected EOF")
}

func TestChoose(t *testing.T) {
	_, err := choose("tumble,nobody", kinds)
	require.ErrorContains(t, err, `"nobody"`)
	entries, err := choose("tumble,kafka-go-incr", kinds)
	require.NoError(t, err)
	require.Len(t, entries, 4) // the slow one reads no more than the plain topic
	_, err = checkKinds("plain,gzip")
	require.ErrorContains(t, err, `"gzip"`)
}

func TestAnswer(t *testing.T) {
	in := bufio.NewReader(strings.NewReader("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX: y\r\n\r\nhelloHTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"))
	body, err := answer(in, nil)
	require.NoError(t, err)
	require.Equal(t, "hello", string(body))
	_, err = answer(in, body)
	require.ErrorContains(t, err, `"no"`)
	_, err = answer(in, body)
	require.ErrorIs(t, err, io.EOF)
}

func TestSchedule(t *testing.T) {
	s := schedule{start: epoch, rate: 1000, keys: 10, every: 5, total: 100}
	require.Equal(t, epoch.Add(50*time.Millisecond), s.due(50))
	require.Equal(t, "probe_50", s.key(50))
	require.NotContains(t, s.key(51), "probe")

	s.start = time.Now()
	n := 0
	require.NoError(t, s.run(t.Context(), func(i int) error {
		require.Equal(t, n, i)
		require.False(t, time.Now().Before(s.due(i)), "never early")
		n++
		return nil
	}))
	require.Equal(t, 100, n)
}
