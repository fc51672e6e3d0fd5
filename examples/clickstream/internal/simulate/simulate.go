// Package simulate makes up clicks: who clicked on which page, and when.
package simulate

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"time"
)

var pages = [...]string{"/", "/home", "/search", "/product", "/cart", "/checkout", "/help"}

// A Click is one click on a page.
type Click struct {
	User string // user_1 to user_N
	Page string
	Time time.Time // UTC
}

// AppendJSON appends c as {"user_id","timestamp","page"}.
func (c Click) AppendJSON(b []byte) []byte {
	b = append(b, `{"user_id":"`...)
	b = append(b, c.User...) // of letters and digits, as the page: nothing to escape
	b = append(b, `","timestamp":"`...)
	b = c.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","page":"`...)
	b = append(b, c.Page...)
	return append(b, `"}`...)
}

// Config says what a Clicker makes up.
type Config struct {
	Users int   // how many users there are, at least 1
	Seed  int64 // 0: another each time; else the same clicks each time
	// Start is the time of the first click; zero: when it is made.
	Start time.Time
	// Step is the time between clicks, not negative; nil: as much as really passes.
	Step *time.Duration
	// Rate is how many clicks there are in a second; 0: no limit.
	Rate float64
}

// A Clicker makes up clicks. It is used by one goroutine.
type Clicker struct {
	cfg   Config
	rand  *rand.Rand
	users []string
	made  int64
	began time.Time // when the first was made
}

// maxNames bounds the user names that are kept: with more users they are made
// as they are needed.
const maxNames = 1 << 16

// New returns a Clicker.
func New(cfg Config) *Clicker {
	seed := uint64(cfg.Seed)
	for seed == 0 {
		seed = rand.Uint64()
	}
	c := &Clicker{cfg: cfg, rand: rand.New(rand.NewPCG(seed, 0))}
	for i := range min(cfg.Users, maxNames) {
		c.users = append(c.users, name(i))
	}
	return c
}

func name(i int) string { return "user_" + strconv.Itoa(i+1) }

// Next waits until the next click is due and returns it. It returns ctx's
// error once ctx has ended.
func (c *Clicker) Next(ctx context.Context) (Click, error) {
	if err := ctx.Err(); err != nil {
		return Click{}, err
	}
	now := time.Now()
	if c.made == 0 {
		c.began = now
		if c.cfg.Start.IsZero() {
			c.cfg.Start = now.UTC().Truncate(time.Millisecond)
		}
	}
	if c.cfg.Rate > 0 {
		due := c.began.Add(time.Duration(float64(c.made) / c.cfg.Rate * float64(time.Second)))
		if wait := due.Sub(now); wait > 0 {
			timer := time.NewTimer(wait)
			defer timer.Stop()
			select {
			case <-ctx.Done():
				return Click{}, ctx.Err()
			case now = <-timer.C:
			}
		}
	}
	since := now.Sub(c.began).Truncate(time.Millisecond)
	if c.cfg.Step != nil {
		step := *c.cfg.Step
		if step > 0 && c.made > math.MaxInt64/int64(step) {
			return Click{}, fmt.Errorf("click %d would come %v times %d after the first: too far to say when", c.made+1, step, c.made)
		}
		since = time.Duration(c.made) * step
	}
	click := Click{Page: pages[c.rand.IntN(len(pages))], Time: c.cfg.Start.Add(since).UTC()}
	if i := c.rand.IntN(c.cfg.Users); i < len(c.users) {
		click.User = c.users[i]
	} else {
		click.User = name(i)
	}
	c.made++
	return click, nil
}
