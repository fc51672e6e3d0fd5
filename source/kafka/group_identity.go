package kafka

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// The members of a group make sure that all of them count into the same place.
// Otherwise each place would hold a part of the events without an error.
//
// A member carries the identity of its counts in the user data of its
// subscription. A process that starts reads the subscriptions of the members
// before it joins, and does not join members that count elsewhere. Two that join
// at the same time cannot read each other's: then the leader sees both, gives no
// partitions to one side and tells it why.

// A claim is a member's description of its counts, in the user data of its
// subscription, which other clients carry and do not read. Members of another make
// and of older versions have the zero value. A sink without an identity has a
// claim without a Definition. Neither is checked.
type claim struct {
	Version    int    `json:"tumble"`     // 1, to which later ones only add fields
	Partitions int    `json:"partitions"` // of the topic, as far as the member knows
	Name       string `json:"name,omitempty"`
	Store      string `json:"store,omitempty"`
	Definition string `json:"definition,omitempty"` // without the retention, which may differ
	Generation int32  `json:"generation,omitempty"` // the last in which it was a member, 0 if it is new
	Held       shares `json:"held,omitempty"`       // partitions that it has since then
}

// A verdict is the user data of the assignment of a member that lost. Only such
// an assignment has any: a broker would not let members of the newer protocol
// into a group that uses them.
type verdict struct {
	Version int   `json:"tumble"`
	Refused claim `json:"refused"` // by the side of this member, one of the winners
}

func newClaim(id tumble.Identity) claim {
	def := id.Definition
	def.Retention = 0
	return claim{Version: 1, Name: id.Name, Store: id.Store, Definition: def.String()}
}

// parseClaim returns the zero value for user data that is not ours.
func parseClaim(userData []byte) claim {
	var c claim
	if json.Unmarshal(userData, &c) != nil || c.Version < 1 {
		return claim{}
	}
	return c
}

func toJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // of strings and numbers
	}
	return text
}

func (c claim) checked() bool { return c.Definition != "" }

type difference int

const (
	sameCounts difference = iota
	otherStore            // of counts that are alike in all else: perhaps one of the two does not know yet that all was lost
	otherCounts
)

func (c claim) differs(d claim) difference {
	switch {
	case !c.checked() || !d.checked():
		return sameCounts
	case c.Name != d.Name || c.Definition != d.Definition:
		return otherCounts
	case c.Store != d.Store && c.Store != "" && d.Store != "":
		return otherStore
	}
	return sameCounts
}

// A refusal is the error of a process that counts elsewhere than the group.
type refusal struct{ ours, theirs claim }

func (r *refusal) Error() string {
	const why = "each would see a part of the events only"
	switch {
	case r.ours.Name != r.theirs.Name:
		return fmt.Sprintf("its members count under the name %q, this process under %q: %s (a new name needs a new Config.Group)",
			r.theirs.Name, r.ours.Name, why)
	case r.ours.Definition != r.theirs.Definition:
		return fmt.Sprintf("its members count %q by another definition, {%s}, than this process counts %q by, {%s}: %s (another definition needs a new name, and a new name needs a new Config.Group)",
			r.theirs.Name, r.theirs.Definition, r.ours.Name, r.ours.Definition, why)
	}
	return fmt.Sprintf("its members count %q into another store (%s) than this process counts %q into (%s): %s (counts in another store, and a new name, need a new Config.Group)",
		r.theirs.Name, r.theirs.Store, r.ours.Name, r.ours.Store, why)
}

// patient reports whether err is a refusal that may pass by itself.
func patient(err error) bool {
	r := new(refusal)
	return errors.As(err, &r) && r.ours.differs(r.theirs) == otherStore
}

const (
	storePatience = 30 * time.Second // for all members to notice that the store lost everything
	storeRecheck  = time.Second
	identityTime  = 2 * time.Second // the sink may be away, and the others wait for this member
)

// identify returns this member's claim: the last one, while the sink does not
// answer or has no id.
func (g *group) identify(ctx context.Context) (claim, error) {
	c := claim{Version: 1}
	if g.cfg.identity != nil {
		if err := g.learn(ctx); err != nil {
			return claim{}, err
		}
		c = g.own
	}
	c.Generation, c.Held = g.lastGen, sharesOf(g.held)
	return c, nil
}

// learn asks the sink for the identity of the counts.
func (g *group) learn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, min(identityTime, g.callTimeout()))
	defer cancel()
	id, err := g.cfg.identity(ctx)
	switch {
	case err == nil && (id.Store != "" || !g.own.checked()): // "": all was lost, and nothing is stored yet
		g.own = newClaim(id)
	case !g.own.checked():
		return fmt.Errorf("identity of the counts: %w", err)
	}
	return nil
}

// moved reports whether the store has another id than this member told the
// group: it lost everything and is counted anew. A member that says so soon does
// not stand in the way of those that start.
func (g *group) moved(ctx context.Context, told claim) bool {
	if g.cfg.identity == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, identityTime)
	defer cancel()
	id, err := g.cfg.identity(ctx)
	return err == nil && newClaim(id).differs(told) != sameCounts
}

// admit reads the subscriptions of the group's members and returns a refusal if
// they count elsewhere than own. While a rebalance is under way the coordinator
// shows none: then the leader is to decide, unless there was doubt before, which
// holds until the members can be read again.
func (g *group) admit(ctx context.Context, own claim, doubt error) error {
	if !own.checked() {
		return nil
	}
	members, settled, err := g.describe(ctx)
	if err != nil {
		return err
	}
	if !settled {
		return doubt
	}
	var worst error
	for _, m := range members {
		if m.instance != "" && m.instance == g.cfg.instanceID || m.refused {
			continue // this process, before it was restarted, or one that lost
		}
		switch own.differs(m.claim) {
		case otherCounts:
			return &refusal{own, m.claim}
		case otherStore:
			worst = &refusal{own, m.claim}
		}
	}
	return worst
}

// A side is the members that count into one place.
type side struct {
	claim
	generation int32 // the last in which one of them was a member
	holders    int   // that had partitions then
	members    int
}

// outvoted returns the members that lose to those that count elsewhere, with the
// winners' claim. The side wins that has members of the latest generation, then
// the one with more members that had partitions then, then the larger one, then
// the one whose identity is smaller. Every leader comes to the same result.
func outvoted(members []groupMember) map[string]claim {
	var sides []*side
	of := func(c claim) *side {
		for _, s := range sides {
			if s.Name == c.Name && s.Definition == c.Definition && s.Store == c.Store {
				return s
			}
		}
		s := &side{claim: c}
		sides = append(sides, s)
		return s
	}
	for _, m := range members {
		if !m.claim.checked() {
			continue
		}
		s := of(m.claim)
		s.members++
		if m.claim.Generation > s.generation {
			s.generation, s.holders = m.claim.Generation, 0
		}
		if m.claim.Generation == s.generation && m.claim.Held != "" {
			s.holders++
		}
	}
	if len(sides) < 2 {
		return nil
	}
	best := slices.MaxFunc(sides, func(a, b *side) int {
		return cmp.Or(
			cmp.Compare(a.generation, b.generation),
			cmp.Compare(a.holders, b.holders),
			cmp.Compare(a.members, b.members),
			cmp.Compare(b.Name, a.Name), cmp.Compare(b.Definition, a.Definition), cmp.Compare(b.Store, a.Store),
		)
	})
	lost := map[string]claim{}
	for _, m := range members {
		if m.claim.differs(best.claim) != sameCounts {
			lost[m.id] = best.claim
		}
	}
	return lost
}

// refusalOf is the assignment of a member that lost: no partitions, and why.
func refusalOf(winner claim) (b wire.Appender) {
	b.Int16(0) // version
	b.Int32(0)
	b.Bytes(toJSON(verdict{1, winner}))
	return b
}

// parseRefusal returns the verdict that an assignment holds, if it holds one.
func parseRefusal(assignment []byte) (winner claim, refused bool) {
	r := wire.NewReader(assignment)
	r.Int16() // version
	for range r.Array() {
		r.Text()
		r.Int32s()
	}
	var v verdict
	if json.Unmarshal(r.Bytes(), &v) != nil || v.Version < 1 || !v.Refused.checked() {
		return claim{}, false
	}
	return v.Refused, true
}
