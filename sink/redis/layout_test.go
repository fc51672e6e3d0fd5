package redis

import (
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

func TestNew(t *testing.T) {
	for field, cfg := range map[string]Config{
		"Client":   {Name: "a"},
		"Name":     {Client: anyClient{}},
		"{ and }":  {Client: anyClient{}, Name: "a{b"},
		"Shards":   {Client: anyClient{}, Name: "a", Shards: 257},
		"Timeout":  {Client: anyClient{}, Name: "a", Timeout: -1},
		"CacheTTL": {Client: anyClient{}, Name: "a", CacheTTL: -1},
	} {
		_, err := New(cfg)
		require.ErrorContains(t, err, field)
	}
}

// TestSlot compares with what CLUSTER KEYSLOT answers.
func TestSlot(t *testing.T) {
	require.EqualValues(t, 12739, slot("123456789"))
	require.EqualValues(t, 12182, slot("foo"))
	require.EqualValues(t, 0, slot(""))
}

// TestTags wants shards spread evenly over the slots, however many there are.
func TestTags(t *testing.T) {
	require.Equal(t, []string{"460", "16", "461", "17"}, tags[:4])
	seen := make(map[string]bool)
	for _, tag := range tags {
		seen[tag] = true
	}
	require.Len(t, seen, maxShards)
	for _, shards := range []int{1, 3, 16, 17, 100, 256} {
		for _, masters := range []int{1, 2, 3, 5, 8} {
			per := make([]int, masters)
			for _, tag := range tags[:shards] {
				per[int(slot(tag))*masters/slots]++
			}
			require.LessOrEqual(t, slices.Max(per)-slices.Min(per), 3, "%d shards on %d masters: %v", shards, masters, per)
		}
	}
	per := make([]int, 3)
	for _, tag := range tags[:clusterShards] {
		per[int(slot(tag))*3/slots]++
	}
	slices.Sort(per)
	require.Equal(t, []int{5, 5, 6}, per)
}

// TestBucketOf wants that a bucket added takes hashes from one other only, the
// next in turn, and that a bucket says of itself where its hashes went.
func TestBucketOf(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		hash := rnd.Uint32()
		require.Zero(t, bucketOf(hash, 1))
		for n := uint32(1); n < 200; n++ {
			i, j := bucketOf(hash, n), bucketOf(hash, n+1)
			require.Less(t, i, n)
			if i == j {
				continue
			}
			require.Equal(t, n, j)
			p := uint32(1)
			for 2*p <= n {
				p *= 2
			}
			require.Equal(t, n-p, i)
		}
	}
	require.EqualValues(t, 1<<32-1-1<<31, bucketOf(1<<32-1, 1<<31))
}

func TestFieldOf(t *testing.T) {
	for _, key := range []string{"", "a", "\x00", "\x00\x00a", "a\x00", "{}\r\n", "\xff"} {
		field := fieldOf(key)
		require.NotEqual(t, marker, field)
		require.Equal(t, key, keyOf(field))
	}
}

// TestHashOf has values that another program computed, as one in another language
// has to, and wants keys of all kinds spread well: a bucket that reaches 128
// fields takes Redis several times the memory.
func TestHashOf(t *testing.T) {
	for field, want := range map[string]uint32{"": 0, "alice": 0x19945554, "user_1234": 0xbe6cf381, strings.Repeat("\xff", 9): 0x5eb80c27,
		strings.Repeat("k", 64): 0x857ef0c, strings.Repeat("k", 65): 0xe5f41211} {
		require.Equal(t, want, hashOf(field), "%q", field)
	}
	for name, key := range map[string]func(i int) string{
		"numbers":        strconv.Itoa,
		"numbers apart":  func(i int) string { return strconv.Itoa(i * 1000) },
		"users":          func(i int) string { return fmt.Sprintf("user_%04d", i) },
		"what follows":   func(i int) string { return fmt.Sprintf("%d@example.com", i) },
		"addresses":      func(i int) string { return fmt.Sprintf("10.0.%d.%d", i>>8, i&255) },
		"hexadecimal":    func(i int) string { return fmt.Sprintf("%032x", sha1.Sum([]byte{byte(i), byte(i >> 8)})) },
		"long":           func(i int) string { return fmt.Sprintf("%01000d", i) },
		"bytes":          func(i int) string { return string(binary.BigEndian.AppendUint32(nil, uint32(i))) },
		"bytes, swapped": func(i int) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(i))) },
	} {
		const keys, buckets = 10_000, 208 // as many as there are just before a split
		var held [buckets]int
		for i := range keys {
			held[bucketOf(hashOf(key(i)), buckets)]++
		}
		require.Less(t, slices.Max(held[:]), 128, name)
		require.Greater(t, slices.Min(held[:]), 10, name)
	}
}

// TestFinalityState compares what a shard says of its windows with tumble's own
// rule, for windows that are just closed, just past retention, and around them.
func TestFinalityState(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, w := range []tumble.Window{
		{Size: time.Minute}, {Size: 7 * 24 * time.Hour, Offset: 4 * 24 * time.Hour}, {Size: 1500 * time.Millisecond, Offset: 700 * time.Millisecond},
		{Calendar: tumble.Day, Zone: berlin}, {Calendar: tumble.Month},
	} {
		for range 300 {
			def := tumble.Definition{Window: w, Grace: time.Duration(rnd.IntN(100_000)) * time.Millisecond, DropLate: rnd.IntN(2) == 0}
			if rnd.IntN(2) == 0 {
				def.Retention = time.Duration(1+rnd.IntN(1_000_000)) * time.Millisecond
			}
			frontier := time.Unix(rnd.Int64N(4e9)-2e9, rnd.Int64N(1e9)).UTC()
			if rnd.IntN(4) == 0 { // on the edge
				frontier = def.EndMark(frontier)
			}
			form, err := storedForm(def, tumble.Checkpoint{Watermark: frontier})
			require.NoError(t, err)
			closed := def.ClosedAt(frontier)
			floor := def.FloorAt(closed)
			said, err := parseFinality(form.closed + " - 1 id " + millis(floor))
			require.NoError(t, err)
			for _, age := range []time.Duration{0, def.Grace, def.Grace + def.Retention} {
				at, end := w.Bounds(frontier.Add(-age))
				for range 4 {
					require.Equal(t, def.State(closed, floor, end), said.state(def, end.UnixMilli()), "%v, frontier %v, window %v", def, frontier, at)
					at, end = w.Bounds(at.Add(-1))
				}
			}
		}
	}
	form, err := storedForm(minutesForever, tumble.Checkpoint{Ended: true})
	require.NoError(t, err)
	require.Equal(t, "-", form.closed)
	require.Equal(t, tumble.Open, nothing.state(minutesForever, minEvent.UnixMilli()))
	// The oldest watermark with the longest grace is not out of range.
	old := tumble.Definition{Window: tumble.Window{Size: time.Minute}, Grace: 25 * 365 * 24 * time.Hour}
	form, err = storedForm(old, tumble.Checkpoint{Watermark: minEvent})
	require.NoError(t, err)
	require.Equal(t, millis(minEvent), form.closed)
}

// TestSortable wants the members of a sorted set in the order of the watermarks,
// none of them first.
func TestSortable(t *testing.T) {
	var last string
	for _, ns := range []int64{-1 << 63, minEvent.UnixNano(), -1e9 - 1, -1, 0, 1, 1e18, 1714564890000000000, maxEvent.UnixNano(), 1<<63 - 1} {
		text := sortable(ns)
		require.Len(t, text, 16)
		require.Greater(t, text, last)
		require.Greater(t, text, "-")
		at, err := parseSortable(text)
		require.NoError(t, err)
		require.Equal(t, ns, at.UnixNano())
		last = text
	}
	at, err := parseSortable("-")
	require.NoError(t, err)
	require.Zero(t, at)
}

// TestTwoLooks has what two looks at a shard say of what was read in between.
func TestTwoLooks(t *testing.T) {
	look := func(text string) finality {
		f, err := parseFinality(text)
		require.NoError(t, err)
		return f
	}
	for name, c := range map[string]struct {
		before, after string
		ok            bool
		closed        int64
	}{
		"the same":                {"60 a 1 id -", "60 a 1 id -", true, 60},
		"closes":                  {"60 a 1 id -", "120 a 1 id 60", true, 60},
		"opens":                   {"120 a 1 id -", "60 a 1 id -", true, 60},
		"first closes":            {"", "60 a 1 id -", true, noMark},
		"says nothing":            {"", "", true, noMark},
		"another term":            {"60 a 1 id -", "60 b 1 id -", false, 0},
		"first term":              {"60 - 1 id -", "120 b 1 id -", false, 0},
		"another id":              {"60 a 1 id -", "60 a 1 other -", false, 0},
		"another id, none before": {"- a 1 id -", "60 a 1 other -", false, 0},
		"all lost":                {"60 a 1 id -", "", false, 0},
	} {
		f, ok := look(c.before).with(look(c.after))
		require.Equal(t, c.ok, ok, name)
		if ok {
			require.Equal(t, c.closed, f.closed, name)
			require.Equal(t, look(c.after).floor, f.floor, name)
		}
	}
}

var minutesForever = tumble.Definition{Window: tumble.Window{Size: time.Minute}}

func TestLayout(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	def := tumble.Definition{Window: tumble.Window{Calendar: tumble.Week, Zone: berlin}, Grace: time.Second, Retention: time.Hour, DropLate: true}
	stored := map[string]string{"id": "1", "retention": "3600000"}
	for pair := range slices.Chunk(fields(def, 5, 2), 2) {
		stored[pair[0]] = pair[1]
	}
	l, err := parseLayout("n", stored)
	require.NoError(t, err)
	require.Equal(t, def.String(), l.def.String())
	require.Equal(t, 5, l.shards)
	require.Equal(t, []string{"n:{460}", "n:{16}", "n:{461}", "n:{17}", "n:{201}"}, l.bases)
	for name := range stored {
		if name == "shard" {
			continue
		}
		good := stored[name]
		stored[name] = "nonsense "
		_, err := parseLayout("n", stored)
		require.ErrorContains(t, err, name)
		stored[name] = good
	}
}

// FuzzRecord wants that what is read is written back the same, and no panic.
func FuzzRecord(f *testing.F) {
	f.Add("0 7c0ffee 118 7 -1 1714564890000000000 live log 1")
	f.Add("- 0 -1 0 2147483647 - ended ")
	f.Add("1 2 3 4 5 0 live \x00 \n")
	f.Add("")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseRecord(s)
		if err != nil {
			return
		}
		form, err := storedForm(minutesForever, c)
		require.NoError(t, err)
		again, err := parseRecord(form.record(7))
		require.NoError(t, err)
		require.True(t, c.Same(again), "%q: %v, then %v", s, c, again)
	})
}

// FuzzFinality wants that only what the scripts write is understood, and what a
// later version appends left alone.
func FuzzFinality(f *testing.F) {
	f.Add("1714564860000 c0ffee 16 00ff -")
	f.Add("- - 1 x -5")
	f.Add("-")
	f.Fuzz(func(t *testing.T, s string) {
		f, err := parseFinality(s)
		if err != nil || s == "" {
			return
		}
		require.NotEmpty(t, f.id)
		mark := func(ms int64) string {
			if ms == noMark {
				return "-"
			}
			return strconv.FormatInt(ms, 10)
		}
		var floors []string
		for _, floor := range f.floors {
			floors = append(floors, mark(floor))
		}
		again, err := parseFinality(fmt.Sprintf("%s %x %d %s %s", mark(f.closed), f.term, f.shards, f.id, strings.Join(floors, " ")))
		require.NoError(t, err)
		require.Equal(t, f, again)
	})
}

func TestCursor(t *testing.T) {
	s := &Sink{core: &core{cfg: Config{Name: "n"}}}
	l := &layout{shards: 16, def: minutesForever}
	cursor := s.cursor(l, 60000, 3, 700)
	shard, bucket, err := s.parseCursor(l, 60000, cursor)
	require.NoError(t, err)
	require.Equal(t, 3, shard)
	require.EqualValues(t, 700, bucket)
	longer := &layout{shards: 16, def: minutesForever}
	longer.def.Retention = time.Hour
	_, _, err = s.parseCursor(longer, 60000, cursor)
	require.NoError(t, err, "how long counts are kept may change")
	sum := cursor[strings.LastIndex(cursor, ".")+1:]
	for _, bad := range []string{"x", "3.700", "3.700.", "3.701." + sum, "+3.700." + sum, "3.700." + sum + "0", cursor + " ", "-1.0." + sum, "3.99999999999." + sum} {
		_, _, err := s.parseCursor(l, 60000, bad)
		require.ErrorIs(t, err, tumble.ErrCursor, bad)
	}
	_, _, err = s.parseCursor(l, 120000, cursor)
	require.ErrorIs(t, err, tumble.ErrCursor, "another window's")
	_, _, err = (&Sink{core: &core{cfg: Config{Name: "m"}}}).parseCursor(l, 60000, cursor)
	require.ErrorIs(t, err, tumble.ErrCursor, "another name's")
}

// TestHighest compares with sorting all.
func TestHighest(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for size := range 12 {
		h := highest{max: size, at: make(map[string]int)}
		all := make(map[string]int64)
		for range 300 {
			key := strconv.Itoa(rnd.IntN(60))
			all[key] += int64(rnd.IntN(5))
			h.add(tumble.Count{Key: key, N: all[key]}) // again, and then more
		}
		var want []tumble.Count
		for key, n := range all {
			want = append(want, tumble.Count{Key: key, N: n})
		}
		slices.SortFunc(want, func(a, b tumble.Count) int {
			if lower(b, a) {
				return -1
			}
			return 1
		})
		require.Len(t, h.at, size)
		require.Equal(t, fmt.Sprint(want[:size]), fmt.Sprint(h.take()))
	}
}

// TestEncode wants every delta once, in the group of its window and bucket, and
// no memory shared with the batch.
func TestEncode(t *testing.T) {
	s := newShard(&Sink{core: &core{}}, minutesForever, 1, 0)
	noon := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	s.sizes[place{0, noon.UnixMilli()}] = size{buckets: 1000}
	want := make(map[string]int64)
	var deltas []tumble.Delta
	for i := range 3500 {
		d := tumble.Delta{Start: noon.Add(time.Duration(i%3) * time.Hour), Key: "\x00" + strconv.Itoa(i), N: int64(i + 1)}
		deltas = append(deltas, d)
		want[fmt.Sprint(d.Start.UnixMilli(), " ", d.Key)] = d.N
	}
	text, err := s.encode(tumble.Batch{Deltas: deltas})
	require.NoError(t, err)
	list := unpack(t, text)
	got := make(map[string]int64)
	digits := func(i int) int64 {
		n, err := strconv.ParseInt(list[i].(string), 10, 64)
		require.NoError(t, err)
		return n
	}
	for len(list) > 0 {
		require.Zero(t, list[0], "the level")
		list = list[1:]
		window, buckets, groups := digits(0), list[2].(uint32), list[3].(uint32)
		require.Equal(t, window+60_000, digits(1))
		if window == noon.UnixMilli() {
			require.EqualValues(t, 1000, buckets)
		}
		list = list[4:]
		last := int64(-1)
		for range groups {
			bucket, n := digits(0), int(list[1].(uint32))
			require.Greater(t, bucket, last)
			last = bucket
			require.LessOrEqual(t, n, groupSize)
			for i := range n {
				field := list[2+i].(string)
				require.EqualValues(t, bucket, bucketOf(hashOf(field), buckets))
				got[fmt.Sprint(window, " ", keyOf(field))] = digits(2 + n + i)
			}
			list = list[2+2*n:]
		}
	}
	require.Equal(t, want, got)

	for _, bad := range []tumble.Delta{
		{Start: noon, Key: "a"}, {Start: noon, Key: "a", N: -1}, {Start: noon, Key: "a", N: tumble.MaxCount + 1},
		{Start: noon.Add(1), Key: "a", N: 1}, {Key: "a", N: 1},
	} {
		_, err := s.encode(tumble.Batch{Deltas: []tumble.Delta{bad}})
		require.Error(t, err, "%v", bad)
	}
}

// unpack reads an array in MessagePack.
func unpack(t *testing.T, text string) (list []any) {
	take := func(n int) string {
		require.GreaterOrEqual(t, len(text), n)
		head := text[:n]
		text = text[n:]
		return head
	}
	number := func(size int) (n uint32) {
		for _, b := range []byte(take(size)) {
			n = n<<8 | uint32(b)
		}
		return n
	}
	require.Equal(t, "\xdd", take(1))
	for range number(4) {
		switch head := number(1); {
		case head < 0x80:
			list = append(list, head)
		case head == 0xce:
			list = append(list, number(4))
		case head >= 0xa0 && head < 0xc0:
			list = append(list, take(int(head-0xa0)))
		case head == 0xda:
			list = append(list, take(int(number(2))))
		case head == 0xdb:
			list = append(list, take(int(number(4))))
		default:
			t.Fatalf("%#x", head)
		}
	}
	require.Empty(t, text)
	return list
}

// TestGuess wants a window to begin with buckets for the keys of the largest of
// those shortly before, or of the batch if they are more.
func TestGuess(t *testing.T) {
	noon := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	at := func(minute int) int64 { return noon.Add(time.Duration(minute) * time.Minute).UnixMilli() }
	s := newShard(&Sink{core: &core{}}, minutesForever, 1, 0)
	const last = 1 + 3*lookBack
	s.sizes[place{0, at(0)}] = size{buckets: 40, keys: 961}
	s.sizes[place{0, at(1)}] = size{buckets: 1, keys: 2}
	s.sizes[place{0, at(last)}] = size{buckets: 7, keys: 100}
	for minute, want := range map[int]uint32{
		0: 40, last: 7, // known
		2: 20, lookBack: 20, // as many keys as the first has, though it has more buckets
		1 + lookBack: 1, last - 1: 1, // that is too long ago
		last + 1: 2, last + lookBack: 2, // after the last
	} {
		one := []portion{{window: at(minute), keys: 20}}
		s.guess(0, one)
		require.Equal(t, want, one[0].buckets, "minute %d", minute)
	}
	one := []portion{{window: at(2), keys: 1}}
	s.guess(0, one)
	require.EqualValues(t, 1, one[0].buckets, "a quiet minute after a busy one")
	many := []portion{{window: at(3), keys: 48*30 + 1}}
	s.guess(0, many)
	require.EqualValues(t, 30, many[0].buckets)

	var row []portion // a catch-up brings many windows at once, in any order
	for minute := last + 1; minute < last+3*lookBack; minute++ {
		row = append(row, portion{window: at(minute), keys: 2})
	}
	slices.Reverse(row[lookBack:])
	s.guess(0, row)
	for _, p := range row {
		require.EqualValues(t, 2, p.buckets, "%v", time.UnixMilli(p.window))
	}
}

// anyClient stands for a client that is not used.
type anyClient struct{ rueidis.Client }
