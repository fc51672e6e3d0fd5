package kafka

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

func TestGroupServesUntilStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		m := startMember(t, testConfig(c), 4*time.Second)
		start := time.Now()
		time.Sleep(10500 * time.Millisecond)
		gens := m.generations()
		require.Len(t, gens, 1)
		require.Equal(t, assignment{"m1", 2, []int32{0, 1, 2}}, gens[0].assignment)
		require.Equal(t, start, gens[0].from, "the id that the coordinator wants is no reason to wait")
		require.InDelta(t, 20.5, len(c.requests(kmsg.Heartbeat)), 0.5) // the 21st is due now

		took, err := m.stop()
		require.NoError(t, err)
		require.Equal(t, 4*time.Second, took, "run waits for serve and for nothing else")
		require.InDelta(t, 28, len(c.requests(kmsg.Heartbeat)), 1, "heartbeats go on while serve drains")
		left := c.requests(kmsg.LeaveGroup)
		require.Len(t, left, 1)
		require.Equal(t, "m1", left[0].Request.(*kmsg.LeaveGroupRequest).Members[0].MemberID)
		require.Equal(t, time.Now(), left[0].at, "it leaves when it has drained, not before")
		require.Len(t, c.requests(kmsg.JoinGroup), 2)
		require.Len(t, c.requests(kmsg.FindCoordinator), 1)

		join := c.requests(kmsg.JoinGroup)[1].Request.(*kmsg.JoinGroupRequest)
		require.Equal(t, int32(45000), join.SessionTimeoutMillis)
		require.Equal(t, int32(60000), join.RebalanceTimeoutMillis)
		require.Equal(t, "consumer", join.ProtocolType)
		require.Nil(t, join.InstanceID)
		require.Len(t, join.Protocols, 1)
		require.Equal(t, "tumble", join.Protocols[0].Name)
	})
}

func TestGroupStaticMemberStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		cfg := testConfig(c)
		cfg.instanceID = "pod-1"
		m := startMember(t, cfg, 0)
		time.Sleep(1500 * time.Millisecond)
		require.NoError(t, m.g.commit(t.Context(), m.generations()[0].assignment, map[int32]int64{2: 5, 0: 7}))
		took, err := m.stop()
		require.NoError(t, err)
		require.Zero(t, took)
		require.Empty(t, c.requests(kmsg.LeaveGroup))
		require.Len(t, c.requests(kmsg.JoinGroup), 1)
		for _, id := range []*string{
			c.requests(kmsg.JoinGroup)[0].Request.(*kmsg.JoinGroupRequest).InstanceID,
			c.requests(kmsg.SyncGroup)[0].Request.(*kmsg.SyncGroupRequest).InstanceID,
			c.requests(kmsg.Heartbeat)[0].Request.(*kmsg.HeartbeatRequest).InstanceID,
			c.requests(kmsg.OffsetCommit)[0].Request.(*kmsg.OffsetCommitRequest).InstanceID,
		} {
			require.NotNil(t, id)
			require.Equal(t, "pod-1", *id)
		}
		ps := c.requests(kmsg.OffsetCommit)[0].Request.(*kmsg.OffsetCommitRequest).Topics[0].Partitions
		require.Len(t, ps, 2)
		require.Equal(t, []int64{0, 7, 2, 5}, []int64{int64(ps[0].Partition), ps[0].Offset, int64(ps[1].Partition), ps[1].Offset})
	})
}

// A heartbeat's answer may say that the generation is over. What the member does next
// depends on what it still is to the coordinator, and it goes on with what it has, also
// if the others take long to join.
func TestGroupGenerationOver(t *testing.T) {
	for _, tc := range []struct {
		code     kafkago.Error
		memberID string // it joins again as
	}{
		{kafkago.RebalanceInProgress, "m1"},
		{kafkago.IllegalGeneration, "m1"},
		{kafkago.UnknownMemberId, ""},
	} {
		t.Run(tc.code.Title(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCoordinator(t)
				on(c, func(_ context.Context, n int, _ *kmsg.HeartbeatRequest) (*kmsg.HeartbeatResponse, error) {
					if n == 2 {
						return failWith(kmsg.NewPtrHeartbeatResponse(), tc.code)
					}
					return nil, nil
				})
				on(c, func(_ context.Context, n int, _ *kmsg.JoinGroupRequest) (*kmsg.JoinGroupResponse, error) {
					if n == 2 {
						time.Sleep(20 * time.Second)
					}
					return nil, nil
				})
				start := time.Now()
				m := startMember(t, testConfig(c), 0)
				time.Sleep(10 * time.Second)
				require.Len(t, m.generations(), 1)
				require.Zero(t, m.generations()[0].ended, "it goes on")
				require.True(t, m.g.unsure.Load())
				time.Sleep(20 * time.Second)
				gens := m.generations()
				require.Len(t, gens, 2)
				require.Equal(t, []int32{0, 1, 2}, gens[1].partitions)
				require.False(t, m.g.unsure.Load())
				joins := c.requests(kmsg.JoinGroup)
				require.Equal(t, tc.memberID, joins[2].Request.(*kmsg.JoinGroupRequest).MemberID)
				require.Equal(t, 1500*time.Millisecond, joins[2].at.Sub(start), "at once")
			})
		})
	}
}

// A member that leaves does not join a rebalance that begins while it drains.
func TestGroupRebalanceWhileLeaving(t *testing.T) {
	for _, code := range []kafkago.Error{kafkago.RebalanceInProgress, kafkago.UnknownMemberId, kafkago.IllegalGeneration} {
		synctest.Test(t, func(t *testing.T) {
			c := newCoordinator(t)
			on(c, func(_ context.Context, n int, _ *kmsg.HeartbeatRequest) (*kmsg.HeartbeatResponse, error) {
				if n >= 4 {
					return failWith(kmsg.NewPtrHeartbeatResponse(), code)
				}
				return nil, nil
			})
			m := startMember(t, testConfig(c), 5*time.Second)
			time.Sleep(2100 * time.Millisecond)
			took, err := m.stop()
			require.NoError(t, err)
			require.Equal(t, 5*time.Second, took)
			require.Len(t, c.requests(kmsg.JoinGroup), 2)
			if code == kafkago.RebalanceInProgress {
				require.Greater(t, len(c.requests(kmsg.Heartbeat)), 12, "heartbeats go on")
			}
		})
	}
}

// Each of these can only come again: run ends, serve first.
func TestGroupClosed(t *testing.T) {
	for code, says := range map[kafkago.Error]string{
		kafkago.FencedInstanceID:           `instance id "pod-1"`,
		kafkago.InconsistentGroupProtocol:  "other consumers than tumble's",
		kafkago.InvalidGroupId:             "group g",
		kafkago.InvalidSessionTimeout:      "45s is not between",
		kafkago.GroupAuthorizationFailed:   "group g",
		kafkago.GroupMaxSizeReached:        "group.max.size",
		kafkago.ClusterAuthorizationFailed: "group g",
	} {
		t.Run(code.Title(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCoordinator(t)
				on(c, func(context.Context, int, *kmsg.JoinGroupRequest) (*kmsg.JoinGroupResponse, error) {
					return failWith(kmsg.NewPtrJoinGroupResponse(), code)
				})
				cfg := testConfig(c)
				cfg.instanceID = "pod-1"
				m := startMember(t, cfg, 0)
				m.wait(t, time.Minute)
				require.ErrorIs(t, m.err, code)
				require.ErrorContains(t, m.err, "kafka: group g: join: ")
				require.ErrorContains(t, m.err, says)
				require.Len(t, c.requests(kmsg.JoinGroup), 1)
			})
			synctest.Test(t, func(t *testing.T) {
				c := newCoordinator(t)
				on(c, func(context.Context, int, *kmsg.HeartbeatRequest) (*kmsg.HeartbeatResponse, error) {
					return failWith(kmsg.NewPtrHeartbeatResponse(), code)
				})
				cfg := testConfig(c)
				cfg.instanceID = "pod-1"
				m := startMember(t, cfg, 2*time.Second)
				m.wait(t, time.Minute)
				require.ErrorIs(t, m.err, code)
				require.ErrorContains(t, m.err, says)
				gens := m.generations()
				require.Len(t, gens, 1)
				require.Equal(t, time.Now(), gens[0].ended.Add(2*time.Second), "run waits for serve")
				require.Len(t, c.requests(kmsg.Heartbeat), 1)
			})
		})
	}
}

// A member that is replaced while it shuts down was asked to stop, and did.
func TestGroupFencedOnTheWayOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		on(c, func(_ context.Context, n int, _ *kmsg.HeartbeatRequest) (*kmsg.HeartbeatResponse, error) {
			if n < 5 {
				return nil, nil
			}
			return failWith(kmsg.NewPtrHeartbeatResponse(), kafkago.FencedInstanceID)
		})
		cfg := testConfig(c)
		cfg.instanceID = "pod-1"
		m := startMember(t, cfg, 3*time.Second)
		time.Sleep(2600 * time.Millisecond)
		took, err := m.stop()
		require.NoError(t, err)
		require.Equal(t, 3*time.Second, took)
	})
}

// Everything else may pass: the member tries again until it has.
func TestGroupJoinsInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		finds := []kafkago.Error{kafkago.GroupCoordinatorNotAvailable, kafkago.GroupLoadInProgress}
		on(c, func(_ context.Context, n int, _ *kmsg.FindCoordinatorRequest) (*kmsg.FindCoordinatorResponse, error) {
			if n < len(finds) {
				return failWith(kmsg.NewPtrFindCoordinatorResponse(), finds[n])
			}
			return nil, nil
		})
		joins := []error{kafkago.NotCoordinatorForGroup, io.EOF, io.EOF, io.EOF, kafkago.GroupLoadInProgress,
			kafkago.RebalanceInProgress, kafkago.Unknown, kafkago.UnknownMemberId, kafkago.GroupCoordinatorNotAvailable}
		on(c, func(_ context.Context, n int, _ *kmsg.JoinGroupRequest) (*kmsg.JoinGroupResponse, error) {
			if n >= len(joins) {
				return nil, nil
			}
			var code kafkago.Error
			if errors.As(joins[n], &code) {
				return failWith(kmsg.NewPtrJoinGroupResponse(), code)
			}
			return nil, joins[n]
		})
		syncs := []kafkago.Error{kafkago.RebalanceInProgress, kafkago.UnknownMemberId, kafkago.IllegalGeneration, kafkago.NotCoordinatorForGroup}
		on(c, func(_ context.Context, n int, _ *kmsg.SyncGroupRequest) (*kmsg.SyncGroupResponse, error) {
			if n < len(syncs) {
				return failWith(kmsg.NewPtrSyncGroupResponse(), syncs[n])
			}
			return nil, nil
		})
		cfg := testConfig(c)
		failed := 0
		cfg.partitions = func(context.Context) (int, error) {
			if failed++; failed == 1 {
				return 0, io.ErrUnexpectedEOF
			}
			return 3, nil
		}
		m := startMember(t, cfg, 0)
		time.Sleep(30 * time.Second)
		gens := m.generations()
		require.Len(t, gens, 1)
		require.Equal(t, []int32{0, 1, 2}, gens[0].partitions)
		require.Equal(t, "m2", gens[0].memberID, "a member that the coordinator does not know asks for a new id")
		// After NOT_COORDINATOR (twice), COORDINATOR_NOT_AVAILABLE and each lost
		// connection it is looked up afresh.
		require.Len(t, c.requests(kmsg.FindCoordinator), 2+1+3+1+1+1)
		require.Less(t, gens[0].from.Sub(c.requests(kmsg.FindCoordinator)[0].at), 12*time.Second)
	})
}

// A member goes on while it may still be one, and no longer.
func TestGroupSession(t *testing.T) {
	for name, silence := range map[string]func(ctx context.Context) error{
		"refused": func(context.Context) error { return io.EOF },
		"hanging": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCoordinator(t)
				start := time.Now()
				var until time.Duration
				lost := func(ctx context.Context) error {
					if at := time.Since(start); at > 5500*time.Millisecond && at < until {
						return silence(ctx)
					}
					return nil
				}
				on(c, func(ctx context.Context, _ int, _ *kmsg.HeartbeatRequest) (*kmsg.HeartbeatResponse, error) {
					return nil, lost(ctx)
				})
				on(c, func(ctx context.Context, _ int, _ *kmsg.FindCoordinatorRequest) (*kmsg.FindCoordinatorResponse, error) {
					return nil, lost(ctx)
				})
				on(c, func(ctx context.Context, _ int, _ *kmsg.JoinGroupRequest) (*kmsg.JoinGroupResponse, error) {
					return nil, lost(ctx)
				})
				until = 45 * time.Second // back before the session of the heartbeat at 5 s is over
				m := startMember(t, testConfig(c), 0)
				time.Sleep(2 * time.Minute)
				require.Len(t, m.generations(), 1)
				_, err := m.stop()
				require.NoError(t, err)

				start = time.Now()
				until = 90 * time.Second
				m = startMember(t, testConfig(c), 0)
				time.Sleep(2 * time.Minute)
				gens := m.generations()
				require.Len(t, gens, 3)
				require.InDelta(t, 50, gens[0].ended.Sub(start).Seconds(), 1, "the last good heartbeat, at 5 s, and the session")
				require.Equal(t, assignment{}, gens[1].assignment, "nothing is held then")
				require.InDelta(t, 93, gens[2].from.Sub(start).Seconds(), 4)
				require.Equal(t, []int32{0, 1, 2}, gens[2].partitions)
			})
		})
	}
}

// The topic's growth is everyone's to notice, the leader's first.
func TestGroupGrowth(t *testing.T) {
	for name, tc := range map[string]struct {
		leads bool
		after time.Duration
	}{
		"leader":   {true, 5 * time.Second},
		"follower": {false, 15 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCoordinator(t)
				if !tc.leads {
					on(c, func(_ context.Context, _ int, req *kmsg.JoinGroupRequest) (*kmsg.JoinGroupResponse, error) {
						if req.MemberID == "" {
							return nil, nil
						}
						res := kmsg.NewPtrJoinGroupResponse()
						res.MemberID, res.LeaderID, res.Protocol, res.Generation = req.MemberID, "other", kmsg.StringPtr(groupProtocol), 1
						return res, nil
					})
					c.own = assignmentOf(map[string][]int32{"clicks": {1}})
				}
				cfg := testConfig(c)
				start := time.Now()
				cfg.partitions = func(context.Context) (int, error) {
					switch at := time.Since(start); {
					case at >= 102*time.Second:
						return 5, nil
					case at >= 52*time.Second && at < 58*time.Second:
						return 0, io.EOF // no answer is no change
					}
					return 3, nil
				}
				m := startMember(t, cfg, 0)
				time.Sleep(150 * time.Second)
				gens := m.generations()
				require.Len(t, gens, 2)
				require.Equal(t, 100*time.Second+tc.after, gens[0].ended.Sub(start))
				joins := c.requests(kmsg.JoinGroup)
				require.NotEqual(t, joins[1].Request.(*kmsg.JoinGroupRequest).Protocols[0].Metadata,
					joins[2].Request.(*kmsg.JoinGroupRequest).Protocols[0].Metadata, "else a follower's join changes nothing")
				if tc.leads {
					require.Equal(t, []int32{0, 1, 2, 3, 4}, gens[1].partitions)
				}
			})
		})
	}
}

func TestGroupServeReturns(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		serve func(ctx context.Context) error
		want  error
	}{
		"it is done":              {func(context.Context) error { return nil }, nil},
		"it failed":               {func(context.Context) error { return broken }, broken},
		"by a context of its own": {func(context.Context) error { return context.DeadlineExceeded }, context.DeadlineExceeded},
		"it failed to drain":      {func(ctx context.Context) error { <-ctx.Done(); return broken }, broken},
		"it says that its ctx ended": {func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCoordinator(t)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				err := newGroup(testConfig(c)).run(ctx, func(ctx context.Context, shares <-chan assignment) error {
					<-shares
					return tc.serve(ctx)
				})
				require.Equal(t, tc.want, err)
				require.Len(t, c.requests(kmsg.LeaveGroup), 1)
			})
		})
	}
}

func TestGroupStopsWhileJoining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, step := range []string{"partitions", "find", "join", "sync", "back-off"} {
			c := newCoordinator(t)
			cfg := testConfig(c)
			hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			switch step {
			case "partitions":
				cfg.partitions = func(ctx context.Context) (int, error) { return 0, hang(ctx) }
			case "find":
				on(c, func(ctx context.Context, _ int, _ *kmsg.FindCoordinatorRequest) (*kmsg.FindCoordinatorResponse, error) {
					return nil, hang(ctx)
				})
			case "join":
				on(c, func(ctx context.Context, n int, _ *kmsg.JoinGroupRequest) (*kmsg.JoinGroupResponse, error) {
					if n == 0 {
						return nil, nil
					}
					return nil, hang(ctx)
				})
			case "sync":
				on(c, func(ctx context.Context, _ int, _ *kmsg.SyncGroupRequest) (*kmsg.SyncGroupResponse, error) {
					return nil, hang(ctx)
				})
			case "back-off":
				cfg.partitions = func(ctx context.Context) (int, error) { return 0, io.EOF }
			}
			m := startMember(t, cfg, 0)
			time.Sleep(4 * time.Second)
			took, err := m.stop()
			require.NoError(t, err, step)
			require.Zero(t, took, step)
			require.Empty(t, m.generations(), step)
			if step == "join" || step == "sync" {
				require.Len(t, c.requests(kmsg.LeaveGroup), 1, "the others need not wait for it")
			}
		}
	})
}

// A coordinator that does not answer must not hold up the way out.
func TestGroupLeaveIsBrief(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		on(c, func(ctx context.Context, _ int, _ *kmsg.LeaveGroupRequest) (*kmsg.LeaveGroupResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		m := startMember(t, testConfig(c), 0)
		time.Sleep(1500 * time.Millisecond)
		took, err := m.stop()
		require.NoError(t, err)
		require.Equal(t, time.Second, took)
	})
}

func TestGroupCommitIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		on(c, func(ctx context.Context, _ int, _ *kmsg.OffsetCommitRequest) (*kmsg.OffsetCommitResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		start := time.Now()
		err := newGroup(testConfig(c)).commit(t.Context(), assignment{memberID: "m1"}, map[int32]int64{0: 1})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 10*time.Second, time.Since(start))
	})
}

func TestGroupCommitFails(t *testing.T) {
	c := newCoordinator(t)
	on(c, func(_ context.Context, n int, req *kmsg.OffsetCommitRequest) (*kmsg.OffsetCommitResponse, error) {
		res := kmsg.NewPtrOffsetCommitResponse()
		topic := kmsg.NewOffsetCommitResponseTopic()
		for _, p := range req.Topics[0].Partitions {
			rp := kmsg.NewOffsetCommitResponseTopicPartition()
			rp.Partition = p.Partition
			if p.Partition == 2 {
				rp.ErrorCode = int16(kafkago.IllegalGeneration)
			}
			topic.Partitions = append(topic.Partitions, rp)
		}
		res.Topics = append(res.Topics, topic)
		return res, nil
	})
	g := newGroup(testConfig(c))
	a := assignment{memberID: "m1", generation: 4}
	require.NoError(t, g.commit(t.Context(), a, nil))
	require.Empty(t, c.requests(kmsg.OffsetCommit), "nothing to say")
	require.NoError(t, g.commit(t.Context(), a, map[int32]int64{1: 5}))
	err := g.commit(t.Context(), a, map[int32]int64{1: 6, 2: 7})
	require.ErrorIs(t, err, kafkago.IllegalGeneration)
	require.ErrorContains(t, err, "kafka: group g: commit offsets: clicks/2: ")
}
