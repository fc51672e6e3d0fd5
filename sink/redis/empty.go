package redis

import (
	"errors"
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
)

// A Reader that was given a definition answers reads of a name under which
// nothing is stored by it: there are no counts, and every window is open.

// assumes reports whether err says that nothing is stored, and the sink was given
// a definition for that case.
func (s *Sink) assumes(err error) bool {
	return errors.Is(err, tumble.ErrNoDefinition) && s.cfg.Definition.Window != (tumble.Window{})
}

// assumed is the definition that the sink was given, of the level that it reads.
func (s *Sink) assumed() (tumble.Definition, error) {
	if s.level == nil {
		return s.cfg.Definition, nil
	}
	def, err := levelOf(s.cfg.Definition, *s.level)
	if err != nil {
		return def, fmt.Errorf("redis: %s: %w", s.cfg.Name, err)
	}
	return def, nil
}

// emptyCount is the count of a key in the window that holds at.
func (s *Sink) emptyCount(key string, at time.Time) (tumble.Count, error) {
	def, err := s.assumed()
	if err != nil {
		return tumble.Count{}, err
	}
	start, end, err := def.Window.Find(at)
	if err != nil {
		return tumble.Count{}, err
	}
	return tumble.Count{Key: key, Start: start, End: end}, nil
}

// emptyPage is the page of the window that holds at. No cursor leads to one.
func (s *Sink) emptyPage(at time.Time, cursor string) (tumble.Page, error) {
	if cursor != "" {
		return tumble.Page{}, fmt.Errorf("redis: %s: scan: cursor %q: %w", s.cfg.Name, cursor, tumble.ErrCursor)
	}
	def, err := s.assumed()
	if err != nil {
		return tumble.Page{}, err
	}
	start, end, err := def.Window.Find(at)
	if err != nil {
		return tumble.Page{}, err
	}
	return tumble.Page{Start: start, End: end}, nil
}
