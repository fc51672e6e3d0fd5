package main

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"strconv"
	"time"
)

// The clicks lie in the hour from epoch on. It is in the past for good, so that
// the same clicks can be read again another day.
var epoch = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

const (
	minutes    = 60
	partitions = 4
	// jitter is how far behind its place in the log a click may be.
	jitter = 5 * time.Second
)

// clicks is a stream that is the same each time it is generated.
type clicks struct {
	n, users int
	seed     uint64
}

type click struct {
	user, page int
	at         time.Time
}

// all yields the clicks in the order in which they are written.
func (c clicks) all() iter.Seq2[int, click] {
	return func(yield func(int, click) bool) {
		r := rand.New(rand.NewPCG(c.seed, 0))
		for i := range c.n {
			at := time.Duration(float64(minutes*time.Minute) * float64(i) / float64(c.n))
			at = max(0, at-time.Duration(r.Int64N(int64(jitter))))
			k := click{user: r.IntN(c.users), page: 100 + r.IntN(1_000_000), at: epoch.Add(at).Truncate(time.Millisecond)}
			if !yield(i, k) {
				return
			}
		}
	}
}

// userName is as long for every user of the usual 10,000.
func userName(user int) string { return fmt.Sprintf("user_%04d", user) }

func userNumber(name string) (int, error) {
	if len(name) < 9 || name[:5] != "user_" {
		return 0, fmt.Errorf("%q is no user", name)
	}
	return strconv.Atoi(name[5:])
}

// appendJSON appends what the producer of the tutorial would write: 80 to 94
// bytes.
func (k click) appendJSON(b []byte) []byte {
	b = append(b, `{"user_id":"`...)
	b = append(b, userName(k.user)...)
	b = append(b, `","timestamp":"`...)
	b = k.at.AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	b = append(b, `","page":"`...)
	b = append(b, pages[k.page%len(pages)]...)
	b = strconv.AppendInt(b, int64(k.page), 10)
	return append(b, `"}`...)
}

var pages = []string{"/home/", "/product/", "/category/", "/cart?item=", "/search?q="}

// tally holds a count for every user and minute.
type tally struct {
	users  int
	counts []uint32
}

func newTally(users int) *tally { return &tally{users, make([]uint32, users*minutes)} }

// add adds n clicks.
func (t *tally) add(user string, at time.Time, n int64) error {
	c, err := t.cell(user, at)
	if err == nil {
		*c += uint32(n)
	}
	return err
}

// set is for counts that may be told twice, as SCAN may.
func (t *tally) set(user string, at time.Time, n int64) error {
	c, err := t.cell(user, at)
	if err == nil {
		*c = uint32(n)
	}
	return err
}

func (t *tally) cell(user string, at time.Time) (*uint32, error) {
	u, err := userNumber(user)
	if err != nil {
		return nil, err
	}
	m := int(at.Sub(epoch) / time.Minute)
	if u < 0 || u >= t.users || at.Before(epoch) || m >= minutes {
		return nil, fmt.Errorf("%s at %v: no such click was written", user, at)
	}
	return &t.counts[m*t.users+u], nil
}

// compare returns how much of want is there, or what is wrong.
func (t *tally) compare(want *tally) error {
	var wrong, missing, extra int64
	for i, n := range t.counts {
		if d := int64(n) - int64(want.counts[i]); d != 0 {
			wrong++
			missing += max(0, -d)
			extra += max(0, d)
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d counts are wrong: %d clicks missing, %d too many", wrong, want.stored(), missing, extra)
	}
	return nil
}

// stored is how many counts are above 0.
func (t *tally) stored() (n int) {
	for _, c := range t.counts {
		if c > 0 {
			n++
		}
	}
	return n
}

// truth is what the first n of the clicks come to.
func (c clicks) truth(n int) *tally {
	t := newTally(c.users)
	for i, k := range c.all() {
		if i == n {
			break
		}
		t.counts[int(k.at.Sub(epoch)/time.Minute)*t.users+k.user]++
	}
	return t
}
