package jsonfields

import (
	"math"
	"time"
)

// parseUnix reads a JSON number of units since the epoch, of which the decimal point
// moved by some digits makes nanoseconds. It is exact, and cuts off what is less than a
// nanosecond. It reports false for a time that is not within the years 1678 to 2261.
func parseUnix(s []byte, digits int) (t time.Time, ok bool) {
	minus := s[0] == '-'
	if minus {
		s = s[1:]
	}
	mantissa, exponent := s, 0
	for i, c := range s {
		if c|0x20 == 'e' {
			mantissa, exponent = s[:i], parseExponent(s[i+1:])
			break
		}
	}
	before := len(mantissa) // digits before the point
	for i, c := range mantissa {
		if c == '.' {
			before = i
		}
	}
	var ns int64
	count := before + exponent + digits // of the digits that are nanoseconds
	for _, c := range mantissa {
		if c == '.' {
			continue
		}
		if count--; count < 0 {
			break
		}
		n := int64(c - '0')
		if ns > (math.MaxInt64-n)/10 {
			return t, false
		}
		ns = 10*ns + n
	}
	for ; count > 0 && ns > 0; count-- {
		if ns > math.MaxInt64/10 {
			return t, false
		}
		ns *= 10
	}
	if minus {
		ns = -ns
	}
	return time.Unix(0, ns).UTC(), true
}

// parseExponent reads an exponent. One beyond a million is as large as any other.
func parseExponent(s []byte) (n int) {
	minus := s[0] == '-'
	if minus || s[0] == '+' {
		s = s[1:]
	}
	for _, c := range s {
		n = min(10*n+int(c-'0'), 1_000_000)
	}
	if minus {
		return -n
	}
	return n
}
