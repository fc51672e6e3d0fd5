package smoothing

import "math"

// Weights say how fast a forecast follows what is new, from 0, never, to 1, at once.
type Weights struct {
	Level, Trend, Season float64
}

// A HoltWinters forecast is a level with a trend and a season, each of which follows the
// series by its weight. It is additive: a season is as high when counts are.
type HoltWinters struct {
	Weights Weights
	Errors  []float64 // of the forecasts of one step, for each count of the series

	level, trend float64
	season       []float64 // what the next counts are above the level
}

// FitHoltWinters returns the forecast whose weights have the least squared error over a
// series, of forecasts of one step.
func FitHoltWinters(series []float64, season int) (*HoltWinters, error) {
	if err := check(series, season); err != nil {
		return nil, err
	}
	best := Weights{0.3, 0.1, 0.1}
	least := start(series, season).follow(series, best)
	// A pattern search: steps along each weight while they help, then half as long.
	for step := 0.2; step > 1e-4; {
		better := false
		for _, w := range []*float64{&best.Level, &best.Trend, &best.Season} {
			for _, by := range []float64{step, -step} {
				was := *w
				*w = min(1, max(0, was+by))
				if sum := start(series, season).follow(series, best); sum < least {
					least, better = sum, true
					break
				}
				*w = was
			}
		}
		if !better {
			step /= 2
		}
	}
	return NewHoltWinters(series, season, best)
}

// NewHoltWinters returns the forecast with given weights.
func NewHoltWinters(series []float64, season int, w Weights) (*HoltWinters, error) {
	if err := check(series, season); err != nil {
		return nil, err
	}
	m := start(series, season)
	m.Errors = make([]float64, 0, len(series))
	m.follow(series, w)
	return m, nil
}

// start returns the states before a series, from its first two seasons: their means for
// level and trend, and how far its counts are from these for the season.
func start(series []float64, season int) *HoltWinters {
	first, second := mean(series[:season]), mean(series[season:2*season])
	m := &HoltWinters{level: first, trend: (second - first) / float64(season), season: make([]float64, season)}
	for i := range m.season {
		m.season[i] = (series[i] - first + series[season+i] - second) / 2
	}
	return m
}

func mean(series []float64) float64 {
	sum := 0.0
	for _, x := range series {
		sum += x
	}
	return sum / float64(len(series))
}

// follow takes in a series, and returns the sum of the squares of its errors.
func (m *HoltWinters) follow(series []float64, w Weights) (sum float64) {
	m.Weights = w
	for i, x := range series {
		e := m.step(i, x)
		if m.Errors != nil {
			m.Errors = append(m.Errors, e)
		}
		sum += e * e
	}
	// From here on the first of season is that of the next count.
	m.season = rotated(m.season, len(series)%len(m.season))
	return sum
}

// step takes in the count at place i, and returns by how much it is above the forecast.
func (m *HoltWinters) step(i int, x float64) float64 {
	s := &m.season[i%len(m.season)]
	level := m.Weights.Level*(x-*s) + (1-m.Weights.Level)*(m.level+m.trend)
	e := x - (m.level + m.trend + *s)
	*s = m.Weights.Season*(x-m.level-m.trend) + (1-m.Weights.Season)**s
	m.trend = m.Weights.Trend*(level-m.level) + (1-m.Weights.Trend)*m.trend
	m.level = level
	return e
}

func rotated(s []float64, by int) []float64 {
	return append(append(make([]float64, 0, len(s)), s[by:]...), s[:by]...)
}

// Forecast returns the next n counts.
//
// The error of the h-th has the variance of one step times 1 + the sum of the squares of
// c_1 to c_h-1, where c_j = level + level*trend*j, and the season's weight more where j
// is a whole number of seasons (Hyndman, Koehler, Ord and Snyder, "Forecasting with
// Exponential Smoothing", 2008, table 6.1, ETS(A,A,A)).
func (m *HoltWinters) Forecast(n int) []Point {
	variance, points := m.variance(), make([]Point, n)
	sum, w := 1.0, m.Weights
	for i := range points {
		h := i + 1
		points[i] = point(m.level+float64(h)*m.trend+m.season[i%len(m.season)], math.Sqrt(variance*sum))
		c := w.Level + w.Level*w.Trend*float64(h)
		if h%len(m.season) == 0 {
			c += w.Season
		}
		sum += c * c
	}
	return points
}

// variance of the errors of one step. The weights and the states at the start were taken
// from the series, so as many of its counts tell nothing of the errors.
func (m *HoltWinters) variance() float64 {
	sum := 0.0
	for _, e := range m.Errors {
		sum += e * e
	}
	return sum / math.Max(1, float64(len(m.Errors)-len(m.season)-5))
}
