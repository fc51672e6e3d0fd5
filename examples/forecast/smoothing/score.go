package smoothing

import "math"

// A Score says how good forecasts were.
type Score struct {
	Model string
	// MAE is the mean absolute error.
	MAE float64
	// MASE is the mean absolute scaled error: below 1 they were better than the seasonal
	// naive forecast of one season ahead is within the series.
	MASE float64
	// Coverage is the share of counts within their bounds, of which 0.95 are to be.
	Coverage float64
}

// Fits are the models that are compared, the simplest one first.
var Fits = []struct {
	Name string
	Fit  func(series []float64, season int) (Model, error)
}{
	{"seasonal naive", func(s []float64, season int) (Model, error) { return NewNaive(s, season) }},
	{"Holt-Winters", func(s []float64, season int) (Model, error) { return FitHoltWinters(s, season) }},
}

// Backtest has each model forecast the last counts of a series from those before, ahead
// at a time, folds times, and returns a score for each, in the order of Fits.
func Backtest(series []float64, season, ahead, folds int) ([]Score, error) {
	if err := check(series[:max(0, len(series)-ahead*folds)], season); err != nil {
		return nil, err
	}
	var scores []Score
	for _, f := range Fits {
		score := Score{Model: f.Name}
		n := float64(ahead * folds)
		for fold := folds; fold > 0; fold-- {
			at := len(series) - fold*ahead
			known := series[:at]
			m, err := f.Fit(known, season)
			if err != nil {
				return nil, err
			}
			scale := 0.0
			for i := season; i < at; i++ {
				scale += math.Abs(known[i]-known[i-season]) / float64(at-season)
			}
			scale = max(scale, 1/float64(at-season)) // as if one of them had been off by one
			for i, p := range m.Forecast(ahead) {
				x := series[at+i]
				e := math.Abs(x - p.Middle)
				score.MAE += e / n
				score.MASE += e / scale / n
				if p.Low <= x && x <= p.High {
					score.Coverage += 1 / n
				}
			}
		}
		scores = append(scores, score)
	}
	return scores, nil
}

// Best returns the place of the score with the least error. A tie goes to the simpler
// model.
func Best(scores []Score) int {
	best := 0
	for i, s := range scores {
		if s.MAE < scores[best].MAE {
			best = i
		}
	}
	return best
}
