package tumble

import (
	"math/rand/v2"
	"time"
)

// Two processes may count one partition: one that was believed dead comes back, a group is
// in a rebalance, or there is none. Counts stay exact, as the store compares checkpoints.
// Here a rival is told from a loss, and given way to.

const (
	lossWait  = 250 * time.Millisecond // until all shards have been looked at after a loss
	rivalWait = 100 * time.Millisecond
	ownerWait = 500 * time.Millisecond // at most, where the other one is to go
)

// suspect distinguishes data loss in the store from a faster rival. A loss is
// seldom of one shard alone, and to read again for each is slow: all shards are
// looked at before reading goes back.
func (c *consumer) suspect(d *delivery, stored Checkpoint) {
	if stored.Log == d.stored.Log && stored.Offset >= d.stored.Offset {
		d.rival = true
		return
	}
	c.readAt = time.Now().Add(lossWait)
	c.p.look()
}

// rest gives way to another process that counts this partition, or did. overtaken says
// that it has counted further than this one.
func (c *consumer) rest(overtaken bool) {
	most := maxWait
	if y, ok := c.part.(Yielder); ok {
		if overtaken && y.Yield() {
			c.p.cfg.Logger.Info("another process has the partition", "partition", c.id)
			c.halt(errStopped)
			return
		}
		most = ownerWait
	}
	c.conflicts++
	if c.conflicts < 2 {
		return
	}
	if silence, ok := c.p.rivals.Now(); ok {
		c.p.cfg.Logger.Warn("another process counts this partition too, counts stay exact but both are slower", "partition", c.id, "unreported", silence)
	}
	wait := min(rivalWait<<min(c.conflicts-2, 10), most)
	c.restAt = time.Now().Add(wait/2 + rand.N(wait/2))
}
