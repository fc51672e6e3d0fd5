package faketest

import (
	"testing"
	"time"
)

// Zone returns a time zone with a name, which is all that is stored of it, and rules of
// its own: those of a machine whose time zone data are others.
func Zone(t testing.TB, name string, hoursEast int) *time.Location {
	// RFC 8536, version 1: one type of local time and no transitions.
	data := append([]byte("TZif"), make([]byte, 16)...)
	for _, n := range []byte{0, 0, 0, 0, 1, 4} { // flags, flags, leap seconds, transitions, types, letters
		data = append(data, 0, 0, 0, n)
	}
	seconds := hoursEast * 3600
	data = append(data, byte(seconds>>24), byte(seconds>>16), byte(seconds>>8), byte(seconds), 0, 0)
	data = append(data, "XST\x00"...)
	zone, err := time.LoadLocationFromTZData(name, data)
	if err != nil {
		t.Fatal(err)
	}
	return zone
}
