package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// groupConfig configures a group. The wire, id, topic and partitions are required.
// Zero durations mean the default.
type groupConfig struct {
	wire       wire.Client
	id         string // of the group
	instanceID string // static membership, "" for dynamic
	topic      string // the one to read

	session   time.Duration // silence after which the coordinator gives our partitions away, 45 s
	rebalance time.Duration // time that members have to join again, 60 s
	heartbeat time.Duration // also how late a rebalance is noticed, 500 ms, at most a third of session
	growth    time.Duration // between two looks at the number of partitions, 5 s

	// partitions returns how many the topic has now, from 0 on.
	partitions func(ctx context.Context) (int, error)
	// identity returns that of the counts. If it is nil, members are not compared.
	identity func(ctx context.Context) (tumble.Identity, error)
	logger   *slog.Logger // slog.Default()
}

// An assignment is a member's share of the topic in one generation of the group.
type assignment struct {
	memberID   string
	generation int32
	partitions []int32 // ascending, none if the group has more members than partitions
}

// A group is this process's membership of a consumer group. It speaks the classic
// protocol, incrementally: a member goes on with what it holds while a rebalance is
// under way, and gives up only what the next assignment takes from it. So two may
// read one partition for a moment. No count depends on the group: positions and
// counts are in the sink, whose compare-and-swap fences the one that is too late, and
// also members that were removed and do not know it yet.
type group struct {
	cfg  groupConfig
	log  *slog.Logger
	node atomic.Int32 // the coordinator, wire.AnyNode: to be looked up

	// unsure is whether other members may have this one's partitions by now: a
	// rebalance is under way, or the coordinator does not answer or has removed it.
	unsure atomic.Bool

	// These are for run's goroutine alone.
	memberID string  // "" until the coordinator gave one
	own      claim   // as last heard from identity
	lastGen  int32   // the last in which this was a member, 0 for none
	held     []int32 // partitions that it has since then
}

func newGroup(cfg groupConfig) *group {
	defaults := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	defaults(&cfg.session, 45*time.Second)
	defaults(&cfg.rebalance, 60*time.Second)
	defaults(&cfg.heartbeat, min(500*time.Millisecond, cfg.session/3))
	defaults(&cfg.growth, 5*time.Second)
	if cfg.logger == nil {
		cfg.logger = slog.Default()
	}
	g := &group{cfg: cfg, log: cfg.logger.With("group", cfg.id, "topic", cfg.topic)}
	g.node.Store(wire.AnyNode)
	return g
}

// groupRetry begins a series of retries.
var groupRetry = backoff{first: 50 * time.Millisecond, most: time.Second}

// Why a member joins again, beside errors of the coordinator.
var (
	errGrown = errors.New("the number of partitions changed")
	errMoved = errors.New("the store lost everything and has another id now")
	errLapse = errors.New("the coordinator did not answer for a session timeout")
)

// run is a member of the group until ctx ends, serve returns on its own, or the
// group is closed to this process. It is called once. It calls serve once, in a
// goroutine of its own, and hands it each assignment, which replaces the one
// before. One without partitions may say that this process is not a member any more.
//
// serve's ctx ends when ctx does, or when the group is closed to this process.
// Heartbeats go on until serve has returned, so that the next owners do not begin
// before.
//
// If serve returns before its ctx has ended, or with an error, run leaves the
// group and returns that error, except for a context's error after its ctx has
// ended. Otherwise run returns nil once ctx ended, and an error that names the
// group if joining it again can only fail again, or if its members count
// elsewhere. Transient errors are logged and retried. A static member does not
// leave: its partitions wait for it for the session timeout.
func (g *group) run(ctx context.Context, serve func(ctx context.Context, shares <-chan assignment) error) error {
	defer g.leave(ctx)
	serving, end := context.WithCancel(ctx)
	beating, served := context.WithCancel(context.WithoutCancel(ctx))
	var (
		shares = make(newest, 1)
		wg     sync.WaitGroup
		err    error
		own    bool // serve returned before its ctx ended
	)
	wg.Go(func() {
		defer served()
		err = serve(serving, shares)
		own = serving.Err() == nil
		end() // of joining, too
	})
	closed := g.belong(serving, beating, shares)
	end()
	wg.Wait()
	switch {
	case err != nil && (own || !isContext(err)):
		return err
	case own || ctx.Err() != nil:
		return nil
	}
	return g.explain(closed)
}

// newest is a channel that holds the latest assignment that was not taken yet.
type newest chan assignment

func (c newest) put(a assignment) {
	for {
		select {
		case c <- a:
			return
		case <-c:
		}
	}
}

// belong joins the group, again and again, until ctx ends, and returns the error that
// closes the group to us. After ctx has ended it stays as it is until beating ends,
// which is when serve has returned.
func (g *group) belong(ctx, beating context.Context, shares newest) error {
	lease := &lease{session: g.cfg.session, over: func() {
		g.log.Warn("gave up all partitions: the coordinator did not answer for a session timeout")
		shares.put(assignment{})
	}}
	defer lease.end()
	for {
		a, err := g.join(ctx, lease, shares)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		g.log.Info("joined", "generation", a.generation, "member", a.memberID, "leader", a.leads, "partitions", string(sharesOf(a.partitions)))
		g.unsure.Store(false)
		shares.put(a.assignment)
		err = g.stay(ctx, beating, a, lease)
		if ctx.Err() != nil {
			return nil
		}
		g.unsure.Store(true)
		if permanent(err) {
			return err
		}
		g.log.Info("joining again", "generation", a.generation, "cause", err)
	}
}

// stay keeps the membership alive until it must be renewed, and returns why. Once ctx
// has ended there is no need: then it returns when beating ends.
func (g *group) stay(ctx, beating context.Context, a joined, lease *lease) error {
	looking, stop := context.WithCancel(ctx)
	changed := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { changed <- g.watch(looking, a) })
	defer wg.Wait()
	defer stop()
	return g.beat(ctx, beating, a, lease, changed)
}

// joined is the result of a round of joining.
type joined struct {
	assignment
	leads  bool
	told   claim          // this member's own
	counts map[string]int // how many partitions the topics had: those of all members if it leads, else ours
}

// join takes part in a rebalance, as often as it takes.
func (g *group) join(ctx context.Context, lease *lease, shares newest) (joined, error) {
	var (
		retry  = groupRetry
		warned time.Time // last, as it may take hours
		doubt  error     // a refusal that may pass
		since  time.Time // doubt came up
	)
	for {
		stranger := g.memberID == ""
		a, err := g.tryJoin(ctx, lease, doubt)
		if refused := new(refusal); errors.As(err, &refused) {
			if lease.end() {
				g.log.Info("gave up all partitions", "cause", err)
				shares.put(assignment{})
				g.held = nil
			}
			if g.memberID != "" {
				g.quit(ctx) // the others need not wait for it
			}
		}
		switch {
		case patient(err) && ctx.Err() == nil:
			if doubt == nil {
				since = time.Now()
				g.log.Warn("group members know the store by another id, reading it again: perhaps it was lost and is counted anew", "error", err)
			}
			doubt = err
			// Who was a member here counted into the same store once.
			if g.lastGen == 0 && time.Since(since) >= storePatience {
				return a, err
			}
			if !pause(ctx, storeRecheck) {
				return a, ctx.Err()
			}
			continue
		case err == nil || ctx.Err() != nil || permanent(err):
			return a, err
		case errors.Is(err, kafkago.MemberIDRequired) && stranger:
			continue // with the id that came with it
		case errors.Is(err, kafkago.UnknownMemberId):
			g.memberID = ""
		case errors.Is(err, kafkago.RebalanceInProgress), errors.Is(err, kafkago.IllegalGeneration):
		default:
			if time.Since(warned) > 10*time.Second {
				g.log.Warn("join failed, retrying", "error", err)
				warned = time.Now()
			}
		}
		if !pause(ctx, retry.next()) {
			return a, ctx.Err()
		}
	}
}

// tryJoin takes part in a rebalance once. doubt is a refusal that was found
// before.
func (g *group) tryJoin(ctx context.Context, lease *lease, doubt error) (joined, error) {
	// Before the request, and afresh: the other members wait for our answer
	// from then on.
	look, cancel := context.WithTimeout(ctx, g.callTimeout())
	own, err := g.cfg.partitions(look)
	cancel()
	if err != nil {
		return joined{}, fmt.Errorf("partitions of %s: %w", g.cfg.topic, err)
	}

	told, err := g.identify(ctx)
	if err != nil {
		return joined{}, err
	}
	if g.memberID == "" {
		if err := g.admit(ctx, told, doubt); err != nil {
			return joined{}, err
		}
	}
	told.Partitions = own

	lease.pause()
	defer lease.resume()
	r, err := g.joinGroup(ctx, subscription(g.cfg.topic, told))
	if r.memberID != "" {
		g.memberID = r.memberID
	}
	if err != nil {
		return joined{}, err
	}
	a := joined{
		assignment: assignment{memberID: r.memberID, generation: r.generation},
		leads:      r.leader == r.memberID,
		told:       told,
		counts:     map[string]int{g.cfg.topic: own},
	}

	var plan []memberAssignment
	if a.leads {
		if plan, a.counts, err = g.lead(ctx, r, own); err != nil {
			return joined{}, err
		}
	}
	synced := time.Now()
	mine, err := g.syncGroup(ctx, a.assignment, plan)
	if err != nil {
		return joined{}, err
	}
	if winner, refused := parseRefusal(mine); refused {
		return joined{}, &refusal{told, winner}
	}
	if a.partitions, err = parseAssignment(mine, g.cfg.topic); err != nil {
		return joined{}, err
	}
	g.lastGen, g.held = a.generation, a.partitions
	lease.begin(synced)
	return a, nil
}

// lead shares out the partitions of all topics that members of the group want,
// which may be others than ours if they are other programs.
func (g *group) lead(ctx context.Context, r joinAnswer, own int) ([]memberAssignment, map[string]int, error) {
	members := make([]groupMember, 0, len(r.members))
	var topics []string
	for _, jm := range r.members {
		m, err := parseMember(jm.id, jm.instance, jm.subscription)
		if err != nil {
			// It gets nothing, rather than nobody anything.
			g.log.Warn("subscription of a member is garbled: it gets no partitions", "error", err)
			m.topics = nil
		}
		members = append(members, m)
		topics = append(topics, m.topics...)
	}
	lost := outvoted(members)
	for i := range members {
		if winner, ok := lost[members[i].id]; ok {
			g.log.Warn("a member counts elsewhere than the group: it is refused", "member", members[i].id, "cause", &refusal{members[i].claim, winner})
			members[i].topics = nil
		}
	}
	// Again: the others may have let us wait for up to the rebalance timeout.
	look, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	if n, err := g.cfg.partitions(look); err == nil {
		own = n
	}
	counts, err := g.countAll(look, topics, own)
	if err != nil {
		return nil, nil, err
	}
	plan := assignPartitions(members, counts)
	answer := make([]memberAssignment, 0, len(members))
	for _, m := range members {
		assigned := assignmentOf(plan[m.id])
		if winner, ok := lost[m.id]; ok {
			assigned = refusalOf(winner)
		}
		answer = append(answer, memberAssignment{m.id, assigned})
	}
	return answer, counts, nil
}

// countAll returns how many partitions each of the topics has, none if it does not
// exist. own is the count of ours.
func (g *group) countAll(ctx context.Context, topics []string, own int) (map[string]int, error) {
	counts := map[string]int{g.cfg.topic: own}
	var others []string
	for _, t := range topics {
		if _, known := counts[t]; !known {
			counts[t] = 0
			others = append(others, t)
		}
	}
	if len(others) == 0 {
		return counts, nil
	}
	found, err := g.metadata(ctx, others)
	if err != nil {
		return nil, err
	}
	maps.Copy(counts, found)
	return counts, nil
}

// beat sends heartbeats until one says, or changed does, that the member must join
// again, and returns why; or, once ctx has ended, until beating ends.
func (g *group) beat(ctx, beating context.Context, a joined, lease *lease, changed <-chan error) error {
	var (
		retry = groupRetry
		alive = time.Now() // when the last request was sent that proved membership
		next  = time.NewTimer(g.cfg.heartbeat)
		gone  bool // from the group, while serve drains
	)
	defer next.Stop()
	for {
		select {
		case <-beating.Done():
			return nil
		case why := <-changed:
			if ctx.Err() == nil {
				return why
			}
			continue
		case <-next.C:
		}
		if gone {
			continue
		}
		sent := time.Now()
		err := g.heartbeat(beating, a.assignment, alive.Add(g.cfg.session))
		wait := g.cfg.heartbeat
		switch {
		case beating.Err() != nil:
			return nil
		case err == nil || ctx.Err() != nil && errors.Is(err, kafkago.RebalanceInProgress):
			// Who is about to leave does not join again: the others wait for that.
			if retry.tries > 0 {
				g.log.Info("heartbeat works again", "generation", a.generation, "silence", sent.Sub(alive))
			}
			alive, retry = sent, groupRetry
			if !lease.renew(sent) && ctx.Err() == nil {
				return errLapse // a member still, without partitions
			}
			g.unsure.Store(false)
		case errors.Is(err, kafkago.RebalanceInProgress):
			lease.renew(sent)
			return err
		case errors.Is(err, kafkago.UnknownMemberId), errors.Is(err, kafkago.IllegalGeneration), permanent(err):
			if errors.Is(err, kafkago.UnknownMemberId) {
				g.memberID = ""
			}
			if ctx.Err() == nil {
				return err
			}
			gone = true
			continue
		default:
			// The coordinator moves or restarts. It gives away no partitions that
			// it does not know of, so go on as long as we may be a member.
			g.unsure.Store(true)
			if retry.tries == 0 {
				g.log.Warn("heartbeat failed, retrying", "generation", a.generation, "error", err)
			}
			wait = min(wait, retry.next())
		}
		next.Reset(wait)
	}
}

// watch returns when the topic has another number of partitions than when this
// member joined, or the store another id, so that it joins again. The leader does
// so at once, which brings in the others. They give it time. They watch at all
// because a static leader that restarts is not told that it leads. It returns nil
// once ctx has ended.
func (g *group) watch(ctx context.Context, a joined) error {
	topics := slices.Collect(maps.Keys(a.counts))
	patience := 3
	if a.leads {
		patience = 1
	}
	look := time.NewTicker(g.cfg.growth)
	defer look.Stop()
	for seen := 0; seen < patience; {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		if g.moved(ctx, a.told) {
			return errMoved
		}
		if changed, err := g.changed(ctx, topics, a.counts); err != nil {
			g.log.Debug("partition count failed, retrying", "error", err)
		} else if changed {
			seen++
		} else {
			seen = 0
		}
	}
	return errGrown
}

func (g *group) changed(ctx context.Context, topics []string, counts map[string]int) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	own, err := g.cfg.partitions(ctx)
	if err != nil {
		return false, err
	}
	now, err := g.countAll(ctx, topics, own)
	if err != nil {
		return false, err
	}
	return !maps.Equal(now, counts), nil
}

// leave tells the coordinator that a dynamic member is gone, so that the others
// need not wait for its session to end. It is best effort, and brief.
func (g *group) leave(ctx context.Context) {
	if g.memberID != "" && g.cfg.instanceID == "" {
		g.quit(ctx)
	}
}

// quit is leave for static members, too.
func (g *group) quit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := g.leaveGroup(ctx, g.memberID); err != nil && !errors.Is(err, kafkago.UnknownMemberId) {
		g.log.Warn("leave failed", "member", g.memberID, "error", err)
	}
	g.memberID = ""
}

// explain names the group in a fatal error, and the remedy where that is known.
func (g *group) explain(err error) error {
	hint := ""
	switch {
	case errors.Is(err, kafkago.FencedInstanceID):
		hint = fmt.Sprintf(" (another process joined with the instance id %q, which must be unique)", g.cfg.instanceID)
	case errors.Is(err, kafkago.InconsistentGroupProtocol):
		hint = " (other consumers than tumble's are in it, and what they read would not be counted: they need another group, or this process another Config.Group)"
	case errors.Is(err, kafkago.InvalidSessionTimeout):
		hint = fmt.Sprintf(" (%v is not between the brokers' group.min.session.timeout.ms and group.max.session.timeout.ms)", g.cfg.session)
	case errors.Is(err, kafkago.GroupAuthorizationFailed):
		hint = " (the permission Read on the group is needed)"
	case errors.Is(err, kafkago.GroupMaxSizeReached):
		hint = " (the brokers' group.max.size)"
	}
	return fmt.Errorf("kafka: group %s: %w%s", g.cfg.id, err, hint)
}
