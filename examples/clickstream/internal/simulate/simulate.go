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
	b = append(b, c.User...) // needs no escapes, nor does the page
	b = append(b, `","timestamp":"`...)
	b = c.Time.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","page":"`...)
	b = append(b, c.Page...)
	return append(b, `"}`...)
}

// Config of a Clicker.
type Config struct {
	Users int            // Users is the number of users, at least 1.
	Seed  int64          // Seed of the clicks. 0 is another one each time.
	Start time.Time      // Start is the time of the first click. Zero is when it is made.
	Step  *time.Duration // Step is the time between clicks, not negative. Nil is real time.
	Rate  float64        // Rate is the number of clicks per second. 0 is no limit.
}

// A Clicker makes up clicks. It is used by one goroutine.
type Clicker struct {
	cfg   Config
	rand  *rand.Rand
	made  int64
	began time.Time // time of the first click's making
}

// New returns a Clicker.
func New(cfg Config) *Clicker {
	seed := uint64(cfg.Seed)
	for seed == 0 {
		seed = rand.Uint64()
	}
	return &Clicker{cfg: cfg, rand: rand.New(rand.NewPCG(seed, 0))}
}

// Next waits until the next click is due and returns it. It returns ctx's error once
// ctx has ended.
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
	c.made++
	return Click{
		Page: pages[c.rand.IntN(len(pages))],
		User: "user_" + strconv.Itoa(c.rand.IntN(c.cfg.Users)+1),
		Time: c.cfg.Start.Add(since).UTC(),
	}, nil
}
