package smoothing

import (
	"math"
	"slices"
)

// An Anomaly is a count that was not to be expected.
type Anomaly struct {
	At              int // place in the series
	Count, Expected float64
	Deviations      float64 // how many standard deviations it is away
}

// farAway is how many standard deviations make an anomaly: of counts that are none, 1 of
// 16,000 is as far away, if errors are normally distributed.
const farAway = 4

// Anomalies returns the counts, from the third season on, that are far from what was
// forecast one step before. Such a count is not followed: what comes after it is judged
// as if it had been what was expected, or one hole would make all around it look wrong.
func Anomalies(series []float64, season int) ([]Anomaly, error) {
	m, err := FitHoltWinters(series, season)
	if err != nil {
		return nil, err
	}
	// The median of the absolute errors is not moved by the few that are looked for;
	// 1.4826 times it is the standard deviation of normally distributed errors. Counts
	// are whole, so half a count is the least.
	sizes := make([]float64, len(m.Errors))
	for i, e := range m.Errors {
		sizes[i] = math.Abs(e)
	}
	slices.Sort(sizes)
	deviation := max(1.4826*sizes[len(sizes)/2], 0.5)

	var found []Anomaly
	again := start(series, season)
	again.Weights = m.Weights
	for i, x := range series {
		expected := again.level + again.trend + again.season[i%season]
		if d := (x - expected) / deviation; i >= 2*season && math.Abs(d) > farAway {
			found = append(found, Anomaly{i, x, max(0, expected), d})
			x = expected
		}
		again.step(i, x)
	}
	return found, nil
}
