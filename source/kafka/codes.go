package kafka

import (
	"errors"

	kafkago "github.com/segmentio/kafka-go"
)

// Error codes of the protocol that decide what happens next.
const (
	codeOffsetOutOfRange  = 1
	codeUnknownTopic      = 3
	codeUnknownTopicID    = 100
	codeInconsistentTopic = 103
)

var errNoLeader = errors.New("the partition has no leader at present")

// passing reports whether err, of one partition or topic, is one that a cluster
// gets over by itself, such as a change of leaders.
func passing(err error) bool {
	var code kafkago.Error
	return errors.Is(err, errNoLeader) || errors.As(err, &code) && code.Temporary()
}

// silent reports whether err is that brokers did not answer, or had no answer
// yet: they did not refuse, and nothing is wrong at our end.
func silent(err error) bool {
	var code kafkago.Error
	return passing(err) || !errors.As(err, &code) && !errors.Is(err, errNoTopic) && !errors.As(err, new(*fatalError))
}

// codeError turns an error code of the protocol into an error; 0 is nil.
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
