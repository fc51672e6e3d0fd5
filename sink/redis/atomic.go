package redis

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// atomic reads from one shard, in one transaction on its master, the finality
// and the answers to the commands, each with its key: all of it is as the shard
// held it at one moment. The client's cache has no part in it.
//
// While the shard's slot moves from one master to another, neither has all keys.
// Redis looks at all keys of a transaction before it runs it, and refuses one
// that knows of a missing key, so that no answer is put together of both. It is
// asked again until the slot has moved.
func (s *Sink) atomic(ctx context.Context, at site, commands ...[]string) (finality, []rueidis.RedisMessage, error) {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		cmds := make([]rueidis.Completed, 0, len(commands)+3)
		cmds = append(cmds, s.client.B().Arbitrary("MULTI").Build().ToRetryable(), s.read("GET", at.base+":finality"))
		for _, words := range commands {
			cmds = append(cmds, s.read(words[0], words[1], words[2:]...))
		}
		cmds = append(cmds, s.client.B().Arbitrary("EXEC").Build().ToRetryable())
		answers, err := executed(s.client.DoMulti(ctx, cmds...))
		if err == nil && len(answers) != len(commands)+1 {
			err = fmt.Errorf("a transaction has %d answers: %w", len(answers), errSyntax)
		}
		if err == nil {
			f, err := finalityOf(answers[0].ToString())
			return f.at(at.level), answers[1:], err
		}
		if !moving(err) {
			return nothing, nil, err
		}
		select {
		case <-ctx.Done():
			return nothing, nil, err
		case <-time.After(wait):
		}
	}
}

// executed returns the answers of a transaction, or the error that explains best
// why it was not executed.
func executed(results []rueidis.RedisResult) ([]rueidis.RedisMessage, error) {
	answers, err := results[len(results)-1].ToArray()
	if err == nil {
		for i := range answers {
			if err := answers[i].Error(); err != nil && !rueidis.IsRedisNil(err) {
				return nil, err
			}
		}
		return answers, nil
	}
	for _, r := range results {
		if cause := r.Error(); cause != nil && !rueidis.IsRedisNil(cause) {
			return nil, cause
		}
	}
	return nil, err
}

// moving reports whether a transaction was not executed because the slot of its
// keys moves. The client repeats a part of the refused commands then: at times it
// sends EXEC without MULTI.
func moving(err error) bool {
	reply, ok := rueidis.IsRedisErr(err)
	return ok && slices.ContainsFunc([]string{"MOVED ", "ASK ", "TRYAGAIN ", "EXECABORT ", "EXEC without MULTI"}, func(word string) bool {
		return strings.HasPrefix(strings.TrimPrefix(reply.Error(), "ERR "), word)
	})
}

// finalityOf reads the answer to GET of a finality key.
func finalityOf(text string, err error) (finality, error) {
	if err != nil && !rueidis.IsRedisNil(err) {
		return nothing, err
	}
	return parseFinality(text)
}

// exactly returns the counts of a field in windows, of which guesses are the
// numbers of buckets as far as known, and the finality that the shard
// had with them: closed is the mark that held all the time. It reports false if
// something was lost in between.
func (s *Sink) exactly(ctx context.Context, at site, windows []int64, guesses []uint32, field string) ([]int64, finality, bool, error) {
	hash := hashOf(field)
	counts, in := make([]int64, len(windows)), make([]uint32, len(windows)) // in: the buckets to look at
	var left []int                                                          // indices of windows
	for i := range windows {
		in[i] = bucketOf(hash, guesses[i])
		left = append(left, i)
	}
	var all finality
	for round := 0; len(left) > 0; round++ {
		commands := make([][]string, 0, 2*len(left))
		for _, i := range left {
			commands = append(commands,
				[]string{"HGET", bucketKey(at.data, windows[i], 0), marker},
				[]string{"HGET", bucketKey(at.data, windows[i], in[i]), field})
		}
		f, answers, err := s.atomic(ctx, at, commands...)
		if err != nil {
			return nil, nothing, false, err
		}
		if round == 0 {
			all = f
		} else if merged, ok := all.with(f); ok {
			all = merged
		} else {
			return nil, nothing, false, nil
		}
		var again []int
		for n, i := range left {
			buckets, err := bucketsOf(answers[2*n])
			if err != nil {
				return nil, nothing, false, err
			}
			if to := bucketOf(hash, buckets); to != in[i] {
				in[i] = to
				again = append(again, i)
				continue
			}
			if counts[i], err = countOf(answers[2*n+1]); err != nil {
				return nil, nothing, false, err
			}
		}
		left = again
	}
	return counts, all, true, nil
}
