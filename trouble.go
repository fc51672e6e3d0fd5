package tumble

import (
	"sync"

	"github.com/tumblestream/tumble/internal/rarely"
)

// A broker or a store that is away brings all partitions into trouble at once. The log
// is told in one line of the process when that begins, in one more of how many there
// are, and in one when the last has passed.

// troubles are the partitions of a run in trouble.
type troubles struct {
	mu   sync.Mutex
	in   map[string]bool // partitions, and whether a line has told of them
	told bool            // a line has told of any
	over int             // partitions whose trouble has passed since
	line rarely.Line
}

// begins notes that a partition is in trouble, and reports whether to tell the log of it,
// and of how many others. What comes and goes faster than lines may is left out, and what
// stays is told later.
func (t *troubles) begins(id string) (others int, tell bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.in[id] {
		return 0, false
	}
	if t.in == nil {
		t.in = map[string]bool{}
	}
	t.in[id] = false
	if _, tell = t.line.Now(); !tell {
		return 0, false
	}
	for id := range t.in {
		t.in[id] = true // by the number
	}
	t.told = true
	return len(t.in) - 1, true
}

// ends notes that a partition is not in trouble, and reports whether to tell the log that
// all trouble has passed, and of how many others.
func (t *troubles) ends(id string) (others int, tell bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, was := t.in[id]; !was {
		return 0, false
	}
	t.over++
	if delete(t.in, id); len(t.in) > 0 {
		return 0, false
	}
	others, tell = t.over-1, t.told
	t.over, t.told = 0, false
	return others, tell
}

// trouble keeps the last error of a shard, or of the partition under -1, until nil
// says that it has passed.
func (c *consumer) trouble(index int, err error) {
	var why error
	c.p.books.of(c.id, func(s *PartitionStats) {
		if delete(c.troubles, index); err != nil {
			c.troubles[index] = err
		}
		s.Err = nil
		for _, err := range c.troubles {
			s.Err = err
		}
		why = s.Err
	})
	if why == nil {
		if others, tell := c.p.troubles.ends(c.id); tell {
			c.p.cfg.Logger.Info("partition works again", "partition", c.id, "others", others)
		}
	} else if others, tell := c.p.troubles.begins(c.id); tell {
		c.p.cfg.Logger.Warn("partition is in trouble, retrying", "partition", c.id, "others", others, "error", why)
	}
}
