package smoothing

import (
	"errors"
	"fmt"
	"math"
)

// A Model says what comes next in a series of counts.
type Model interface {
	// Forecast returns the next n counts.
	Forecast(n int) []Point
}

// A Point is a forecast of one count: most likely Middle, and in 95 of 100 cases from
// Low to High. Counts are never negative, and neither are Points.
type Point struct{ Low, Middle, High float64 }

// within is the factor of the standard deviation that gives bounds for 95 of 100 cases,
// if errors are normally distributed.
const within = 1.96

// point returns a forecast whose error has a standard deviation.
func point(middle, deviation float64) Point {
	return Point{max(0, middle-within*deviation), max(0, middle), max(0, middle+within*deviation)}
}

// ErrShort says that a series has less than two seasons, from which no season can be told.
var ErrShort = errors.New("smoothing: less than two seasons are known")

func check(series []float64, season int) error {
	if season < 2 {
		return fmt.Errorf("smoothing: a season has at least 2 counts, not %d", season)
	}
	if len(series) < 2*season {
		return fmt.Errorf("%w: %d counts, of seasons of %d", ErrShort, len(series), season)
	}
	return nil
}

// A Naive forecast is what was a season ago.
type Naive struct {
	last      []float64 // season
	deviation float64   // of what one season tells of the next
}

// NewNaive returns the seasonal naive forecast of a series.
func NewNaive(series []float64, season int) (*Naive, error) {
	if err := check(series, season); err != nil {
		return nil, err
	}
	sum := 0.0
	for i := season; i < len(series); i++ {
		sum += square(series[i] - series[i-season])
	}
	return &Naive{series[len(series)-season:], math.Sqrt(sum / float64(len(series)-season))}, nil
}

// Forecast returns the next n counts. Each further season adds the errors of one.
func (m *Naive) Forecast(n int) []Point {
	points := make([]Point, n)
	for i := range points {
		points[i] = point(m.last[i%len(m.last)], m.deviation*math.Sqrt(float64(i/len(m.last)+1)))
	}
	return points
}

func square(x float64) float64 { return x * x }
