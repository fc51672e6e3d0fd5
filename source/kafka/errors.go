package kafka

import (
	"context"
	"errors"
	"fmt"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// A LostError stops Run where records of a partition are gone and the Policy of
// that case is Fail.
type LostError struct {
	Topic     string
	Partition int32
	// From and To bound the offsets of the records, To excluded. To is -1 if the
	// topic was recreated: nobody knows any more where the old one ended. If the
	// log was truncated, the records were counted. Otherwise they were not.
	From, To int64
	// Cause wraps ErrGap, ErrRecreated or tumble.ErrTruncated, and names the field
	// of Config that decides.
	Cause error
}

// Causes of a LostError. The third is tumble.ErrTruncated.
var (
	ErrGap       = errors.New("retention deleted offsets")
	ErrRecreated = errors.New("the topic was recreated")
)

// Error begins with the position that counts reach to.
func (e *LostError) Error() string {
	at := e.From
	if errors.Is(e.Cause, tumble.ErrTruncated) {
		at = e.To
	}
	return fmt.Sprintf("kafka: %s/%d@%d: %v", e.Topic, e.Partition, at, e.Cause)
}

// Unwrap returns Cause.
func (e *LostError) Unwrap() error { return e.Cause }

// fatalError ends the run, since no retry can help.
type fatalError struct{ err error }

func (f *fatalError) Error() string { return f.err.Error() }

var (
	errNoTopic  = errors.New("topic does not exist")
	errNoLeader = errors.New("the partition has no leader at present")
	// errParted is an answer whose first records were not written after those
	// before them were.
	errParted = errors.New("the records there were written in another leader epoch than those read before them")
)

// Error codes of the protocol that are acted on.
const (
	codeOffsetOutOfRange  = 1
	codeUnknownTopic      = 3
	codeUnknownTopicID    = 100
	codeInconsistentTopic = 103
)

// codeError turns an error code of the protocol into an error. 0 is nil.
func codeError(code int16) error {
	switch code {
	case 0:
		return nil
	case codeUnknownTopicID:
		return errors.New("unknown topic id: the topic was deleted, or the broker does not know it yet")
	case codeInconsistentTopic:
		return errors.New("inconsistent topic id: the topic was recreated")
	}
	return kafkago.Error(code)
}

// transient reports whether err, of one partition or topic, is one that a cluster
// gets over by itself, such as a change of leaders.
func transient(err error) bool {
	var code kafkago.Error
	return errors.Is(err, errNoLeader) || errors.As(err, &code) && code.Temporary()
}

// unanswered reports whether err means that brokers did not answer, or had no
// answer yet. They did not refuse, and nothing is wrong at our end.
func unanswered(err error) bool {
	var code kafkago.Error
	return transient(err) || !errors.As(err, &code) && !errors.Is(err, errNoTopic) &&
		!errors.Is(err, wire.ErrOld) && !errors.As(err, new(*fatalError))
}

// permanent reports whether err, of a group, needs a person, here or at the
// brokers: configuration, authorization or fencing. Retrying cannot help.
// Everything else may pass: lost connections, elections, restarts, even a refused
// login while a broker has yet to learn its users.
func permanent(err error) bool {
	if errors.Is(err, wire.ErrOld) || errors.As(err, new(*refusal)) {
		return true
	}
	var code kafkago.Error
	if !errors.As(err, &code) {
		return false
	}
	switch code {
	case kafkago.FencedInstanceID, kafkago.InconsistentGroupProtocol, kafkago.InvalidGroupId,
		kafkago.InvalidSessionTimeout, kafkago.GroupAuthorizationFailed, kafkago.TopicAuthorizationFailed,
		kafkago.ClusterAuthorizationFailed, kafkago.GroupMaxSizeReached, kafkago.UnsupportedVersion, kafkago.InvalidRequest:
		return true
	}
	return false
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
