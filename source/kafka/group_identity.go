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
)

// How the members of a group make sure that all of them count into the same
// place. If they did not, each place would hold a part of the events, and no
// error would say so.
//
// A member carries the identity of its counts in the user data of its
// subscription. A process that starts reads the subscriptions of the members
// before it joins, and does not join members that count elsewhere. Two that join
// at the same time cannot read each other's: then the leader sees both, gives no
// partitions to one side and tells it why.

// A claim is what a member says of itself in the user data of its subscription,
// which other clients carry and do not read. It is the zero value for members of
// another make and of older versions, and has no Definition if the sink has no
// identity: neither is checked.
type claim struct {
	Version    int    `json:"tumble"`     // 1; later ones only add fields
	Partitions int    `json:"partitions"` // of the topic, as far as the member knows
	Name       string `json:"name,omitempty"`
	Store      string `json:"store,omitempty"`
	Definition string `json:"definition,omitempty"` // without the retention, which may differ
	Generation int32  `json:"generation,omitempty"` // the last in which it was a member; 0: it is new
	Held       int    `json:"held,omitempty"`       // partitions that it had then
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

func appendJSON(b []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers
	}
	return append(b, text...)
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

// identify returns what this member is to say of itself. While the sink does not
// answer, or has no id, that is what it said last.
func (g *group) identify(ctx context.Context) (claim, error) {
	if g.cfg.identity == nil {
		return claim{Version: 1}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, min(identityTime, g.callTimeout()))
	defer cancel()
	id, err := g.cfg.identity(ctx)
	switch {
	case err == nil && (id.Store != "" || !g.own.checked()): // "": all was lost, and nothing is stored yet
		g.own = newClaim(id)
	case !g.own.checked():
		return claim{}, fmt.Errorf("identity of the counts: %w", err)
	}
	c := g.own
	c.Generation, c.Held = g.lastGen, g.held
	return c, nil
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
			continue // this process, before it was restarted; one that lost
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

// outvoted returns the members that lose to those that count elsewhere, with what
// these claim. Members of the latest generation outvote newcomers, the more of
// them that had partitions the better; then the larger side wins, then the one
// whose identity is smaller. Every leader comes to the same result.
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
		if m.claim.Generation == s.generation && m.claim.Held > 0 {
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

// appendRefusal writes the assignment of a member that lost: no partitions, and
// why.
func appendRefusal(b []byte, winner claim) []byte {
	b = append(b, 0, 0)
	b = appendInt32(b, 0)
	return appendBytes(b, appendJSON(nil, verdict{1, winner}))
}

// parseRefusal returns the verdict that an assignment holds, if it holds one.
func parseRefusal(assignment []byte) (winner claim, refused bool) {
	r := groupAnswer{b: assignment}
	r.int16()
	for range r.array(6) {
		r.string()
		r.int32s()
	}
	var v verdict
	if json.Unmarshal(r.bytes(), &v) != nil || v.Version < 1 || !v.Refused.checked() {
		return claim{}, false
	}
	return v.Refused, true
}
