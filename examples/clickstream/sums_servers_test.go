//go:build servers

package main

import (
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestRollups counts minutes, hours and days from one read.
func TestRollups(t *testing.T) {
	f := newFlow(t, cluster, 3)
	const clicks = 10_000
	p := f.produce(t, "-count", strconv.Itoa(clicks), "-rate", "0", "-users", "50", "-seed", "1", "-start", "2023-10-01T20:30:00Z", "-step", "2s", "-quiet")
	require.Zero(t, p.wait(t, patience))
	// Minutes are past retention at once.
	c := f.consume(t, "-until-end", "-retention", "10m", "-rollup", "1h:10h", "-rollup", "day Europe/Berlin")
	require.Zero(t, c.wait(t, patience))
	require.EqualValues(t, clicks, c.books(t).Counted)

	days, hours := map[string]map[string]int64{}, map[string]map[string]int64{}
	for minute, users := range f.loop(t, clicks) {
		at, err := time.Parse("2006-01-02T15:04", minute)
		require.NoError(t, err)
		day := "2023-09-30T22:00"
		if !at.Before(time.Date(2023, 10, 1, 22, 0, 0, 0, time.UTC)) {
			day = "2023-10-01T22:00"
		}
		for level, start := range map[*map[string]map[string]int64]string{&days: day, &hours: at.Format("2006-01-02T15:00")} {
			if (*level)[start] == nil {
				(*level)[start] = map[string]int64{}
			}
			for user, n := range users {
				(*level)[start][user] += n
			}
		}
	}
	require.Len(t, days, 2)
	api := f.serve(t)
	for window, want := range map[string]map[string]map[string]int64{"1h": hours, "day Europe/Berlin": days} {
		var all struct {
			Minutes []struct {
				Minute, State string
				Users         int
				Clicks        int64
			}
		}
		fetch(t, api+"/minutes?from=2023-09-30T00:00&to=2023-10-03T00:00&window="+url.QueryEscape(window), &all)
		require.Len(t, all.Minutes, len(want))
		for i, m := range all.Minutes {
			require.Len(t, want[m.Minute], m.Users)
			require.Equal(t, total(map[string]map[string]int64{"": want[m.Minute]}), m.Clicks)
			require.Equal(t, i == len(all.Minutes)-1, m.State == "open")
			var one count
			fetch(t, api+"/clicks/user_7/"+m.Minute+"?window="+url.QueryEscape(window), &one)
			require.Equal(t, count{"user_7", m.Minute, want[m.Minute]["user_7"], m.State}, one)
		}
	}
	var one count
	fetch(t, api+"/clicks/user_7/2023-10-01T20:31", &one)
	require.Equal(t, count{"user_7", "2023-10-01T20:31", 0, "expired"}, one)

	// Another set of windows is another definition, and one that cannot be is a bad flag.
	c = f.consume(t, "-until-end", "-rollup", "1h")
	require.Equal(t, 1, c.wait(t, patience))
	require.Contains(t, strings.Join(c.stderr, "\n"), "rolled up to day Europe/Berlin")
	for _, flags := range [][]string{{"-rollup", "90s"}, {"-rollup", "1h:5m", "-retention", "10m"}, {"-rollup", "1h", "-rollup", "60m"}, {"-rollup", "1x"}, {"-rollup", "1h:x"}, {"-rollup", "day Asia/Kolkata", "-window", "1h"}} {
		fails(t, 2, "rollup", "consumer", flags...)
	}
}

// TestSums adds up a field of nested records whose time is a number, and asks for
// totals and progress.
func TestSums(t *testing.T) {
	f := newFlow(t, server, 1)
	f.put(t, 0,
		[]byte(`{"customer":{"id":"a"},"at":1696163696789,"bytes":1000}`), // 2023-10-01T12:34:56.789Z
		[]byte(`{"customer":{"id":17},"at":1696163696789.5,"bytes":24}`),
		[]byte(`{"customer":{"id":"a"},"at":1696163697000,"bytes":0}`),
		[]byte(`{"customer":{"id":"a"},"at":1696163699000,"bytes":5}`),
		[]byte(`{"customer":{"id":"a"},"at":1696163760000,"bytes":7}`), // two minutes later
		[]byte(`{"customer":{"id":"a"},"at":1696163696789}`),
		[]byte(`{"customer":{"id":"a"},"at":1696163696789,"bytes":1.5}`),
		[]byte(`{"customer":{"id":"a"},"at":1696163696789,"bytes":-1}`),
		[]byte(`{"customer":{"id":"a"},"at":"2023-10-01T12:34:56Z","bytes":1}`),
		[]byte(`{"customer.id":"a","at":1696163696789,"bytes":1}`),
	)
	flags := []string{"-until-end", "-key", "customer.id", "-time", "at", "-time-unit", "ms", "-sum", "bytes"}
	c := f.consume(t, flags...)
	require.Zero(t, c.wait(t, patience))
	b := c.books(t)
	require.EqualValues(t, 10, b.Read)
	require.EqualValues(t, 4, b.Counted)
	require.EqualValues(t, 1, b.Skipped)
	require.EqualValues(t, 5, b.Rejected)

	api := f.serve(t)
	var one count
	fetch(t, api+"/clicks/a/2023-10-01T12:34", &one)
	require.EqualValues(t, 1005, one.Clicks)
	fetch(t, api+"/clicks/17/2023-10-01T12:34", &one)
	require.EqualValues(t, 24, one.Clicks)
	require.Equal(t, `{"minutes":[{"minute":"2023-10-01T12:34","users":2,"clicks":1029,"state":"closed"},{"minute":"2023-10-01T12:36","users":1,"clicks":7,"state":"open"}]}`+"\n",
		text(t, api+"/minutes?from=2023-10-01T12:00&to=2023-10-01T13:00"))
	require.Contains(t, text(t, api+"/minutes/2023-10-01T12:34/top"), `"users":2,"clicks":1029,"top":[{"user_id":"a","clicks":1005},`)
	require.Contains(t, text(t, api+"/progress"), `{"partitions":[{"partition":"`+f.name+`/0","offset":10,"watermark":"2023-10-01T12:36:00Z"}],"frontier":"2023-10-01T12:36:00Z"}`)

	// Numbers and sums are two kinds of counts.
	c = f.consume(t, flags[:len(flags)-2]...)
	require.Equal(t, 1, c.wait(t, patience))
	require.Contains(t, strings.Join(c.stderr, "\n"), "sum true")

	// A sum that would be too large ends it, with nothing of the batch stored.
	f.put(t, 0, []byte(`{"customer":{"id":"a"},"at":1696163699000,"bytes":9007199254740000}`))
	c = f.consume(t, flags...)
	require.Equal(t, 1, c.wait(t, patience))
	require.Regexp(t, `a count would pass 2\^53 - 1: with "a" in the window from 2023-10-01T12:34:00Z to 2023-10-01T12:35:00Z`, strings.Join(c.stderr, "\n"))
	fetch(t, api+"/clicks/a/2023-10-01T12:34", &one)
	require.EqualValues(t, 1005, one.Clicks)
}
