package recipes

import (
	"context"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// Across reads counts of minutes over the day on which a hand-written loop of INCR gave way
// to a pipeline: those of minutes before At from the loop's keys, all others from Counts.
// The pipeline must have counted At and what follows from the log, so start it before At.
type Across struct {
	Counts tumble.Reader
	At     time.Time // start of the first minute that the pipeline answers for
	Old    func(ctx context.Context, key string, minute time.Time) (int64, error)
}

// Count returns the count of a key in the minute that holds at. What the loop counted is
// closed: exact it is not.
func (a Across) Count(ctx context.Context, key string, at time.Time) (tumble.Count, error) {
	if !at.Before(a.At) {
		return a.Counts.Count(ctx, key, at)
	}
	minute := at.UTC().Truncate(time.Minute)
	n, err := a.Old(ctx, key, minute)
	return tumble.Count{Key: key, Start: minute, End: minute.Add(time.Minute), N: n, State: tumble.Closed}, err
}

// OldKeys reads keys such as clicks:user_1:2023-10-01T12:34, as the loop wrote them.
func OldKeys(client rueidis.Client) func(ctx context.Context, key string, minute time.Time) (int64, error) {
	return func(ctx context.Context, key string, minute time.Time) (int64, error) {
		text, err := client.Do(ctx, client.B().Get().Key("clicks:"+key+":"+minute.Format("2006-01-02T15:04")).Build()).ToString()
		if rueidis.IsRedisNil(err) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		return strconv.ParseInt(text, 10, 64)
	}
}
