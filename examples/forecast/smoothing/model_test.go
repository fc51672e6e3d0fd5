package smoothing

import (
	"encoding/csv"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// flights are departures per hour; see testdata/README.md.
func flights(t *testing.T) (series []float64) {
	file, err := os.Open("testdata/flights.csv")
	require.NoError(t, err)
	defer file.Close()
	rows, err := csv.NewReader(file).ReadAll()
	require.NoError(t, err)
	for _, row := range rows[1:] {
		x, err := strconv.ParseFloat(row[1], 64)
		require.NoError(t, err)
		series = append(series, x)
	}
	return series
}

// figures are what statsmodels says of the flights with one season.
type figures struct {
	Fixed struct {
		FittedValues []float64 `json:"fitted_values"`
		Forecast     []float64
		SSE          float64
	}
	Fitted struct {
		SSE     float64
		Weights []float64
	}
	BacktestMAE float64 `json:"backtest_mae"`
}

func statsmodels(t *testing.T) map[int]figures {
	text, err := os.ReadFile("testdata/statsmodels.json")
	require.NoError(t, err)
	var all struct{ Seasons map[int]figures }
	require.NoError(t, json.Unmarshal(text, &all))
	require.Len(t, all.Seasons, 2)
	return all.Seasons
}

// With the same weights and states all figures are those of statsmodels.
func TestHoltWintersIsThatOfStatsmodels(t *testing.T) {
	series := flights(t)
	for season, want := range statsmodels(t) {
		m, err := NewHoltWinters(series, season, Weights{0.2, 0.05, 0.3})
		require.NoError(t, err)
		sum := 0.0
		for _, e := range m.Errors {
			sum += e * e
		}
		require.InEpsilon(t, want.Fixed.SSE, sum, 1e-9)
		for i, fitted := range want.Fixed.FittedValues {
			at := len(series) - len(want.Fixed.FittedValues) + i
			require.InDelta(t, fitted, series[at]-m.Errors[at], 1e-9)
		}
		// For the last count of a season statsmodels takes the season before the last update
		// of it, where the book takes that after it.
		for i, p := range m.Forecast(season - 1) {
			require.InDelta(t, max(0, want.Fixed.Forecast[i]), p.Middle, 1e-9, "%d of season %d", i, season)
		}
	}
}

// What is fitted here is at least as near to the series.
func TestFitIsAsGoodAsThatOfStatsmodels(t *testing.T) {
	series := flights(t)
	for season, want := range statsmodels(t) {
		m, err := FitHoltWinters(series, season)
		require.NoError(t, err)
		sum := 0.0
		for _, e := range m.Errors {
			sum += e * e
		}
		t.Logf("season %d: squared error %.0f by %.4f, statsmodels %.0f by %.4f", season, sum, m.Weights, want.Fitted.SSE, want.Fitted.Weights)
		require.LessOrEqual(t, sum, 1.01*want.Fitted.SSE)
	}
}

// Two weeks, a day at a time: Holt-Winters is as good as statsmodels', and the better of
// the two is better than last week's same hour was, with the bounds that it promises.
func TestBacktest(t *testing.T) {
	series, want := flights(t), statsmodels(t)
	for _, season := range []int{24, 168} {
		scores, err := Backtest(series, season, 24, 14)
		require.NoError(t, err)
		for _, s := range scores {
			t.Logf("season %3d  %-15s MAE %.2f  MASE %.2f  coverage %.2f  (statsmodels' Holt-Winters: MAE %.2f)", season, s.Model, s.MAE, s.MASE, s.Coverage, want[season].BacktestMAE)
		}
		require.InDelta(t, want[season].BacktestMAE, scores[1].MAE, 0.1*want[season].BacktestMAE)
	}
	scores, err := Backtest(series, 168, 24, 14)
	require.NoError(t, err)
	best := scores[Best(scores)]
	require.Less(t, best.MASE, 1.0)
	require.InDelta(t, 0.95, best.Coverage, 0.05)
}

// The bounds hold as many counts as they promise: of a level with noise, and of one that
// wanders, where they must become wider.
func TestBounds(t *testing.T) {
	for name, wanders := range map[string]float64{"noise": 0, "a level that wanders": 10} {
		r := rand.New(rand.NewPCG(1, 2))
		inside, n := 0, 0
		for range 200 {
			series, level := make([]float64, 12*20), 1000.0
			for i := range series {
				level += wanders * r.NormFloat64()
				series[i] = level + 100*math.Sin(float64(i)*math.Pi/6) + 10*r.NormFloat64()
			}
			m, err := FitHoltWinters(series[:12*19], 12)
			require.NoError(t, err)
			for i, p := range m.Forecast(12)[6:] {
				if x := series[12*19+6+i]; p.Low <= x && x <= p.High {
					inside++
				}
				n++
			}
		}
		require.InDelta(t, 0.95, float64(inside)/float64(n), 0.04, name)
	}
}

func TestNaive(t *testing.T) {
	m, err := NewNaive([]float64{1, 2, 3, 3, 4, 5}, 3)
	require.NoError(t, err)
	for i, want := range []Point{
		{0, 3, 3 + 1.96*2}, {4 - 1.96*2, 4, 4 + 1.96*2}, {5 - 1.96*2, 5, 5 + 1.96*2}, {0, 3, 3 + 1.96*2*math.Sqrt2},
	} {
		got := m.Forecast(4)[i]
		require.InDeltaSlice(t, []float64{want.Low, want.Middle, want.High}, []float64{got.Low, got.Middle, got.High}, 1e-9)
	}
}

// In a series with known anomalies they are found, and nothing else.
func TestAnomalies(t *testing.T) {
	hits, others, n := 0, 0, 0
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		series, level := make([]float64, 24*40), 400.0
		for i := range series {
			level += 6 * r.NormFloat64()
			series[i] = math.Round(level + 80*math.Sin(float64(i)*math.Pi/12) + 4*r.NormFloat64())
		}
		put := map[int]float64{}
		for k := range 5 { // each of them goes on for two windows
			at := 50 + 180*k + r.IntN(170)
			put[at] = series[at] + []float64{-80, 80}[k%2]
			put[at+1] = series[at+1] + []float64{-80, 80}[k%2]
		}
		for at, x := range put {
			series[at] = x
		}
		found, err := Anomalies(series, 24)
		require.NoError(t, err)
		for _, a := range found {
			if x, ok := put[a.At]; ok {
				hits++
				require.Equal(t, x, a.Count)
				require.Equal(t, a.Count > a.Expected, a.Deviations > 0)
			} else {
				others++
			}
		}
		n += len(put)
	}
	t.Logf("%d of %d found, and %d others", hits, n, others)
	require.Equal(t, n, hits)
	require.LessOrEqual(t, others, n/20)
}

// Holes and bursts that were put into the flights are found, beside what that summer's
// thunderstorms did.
func TestAnomaliesOfFlights(t *testing.T) {
	series := flights(t)
	put := map[int]float64{400: 0, 401: 0, 700: 60, 1002: 150, 1100: 0, 1404: 5, 1500: 140, 1599: 0}
	for at, x := range put {
		series[at] = x
	}
	found, err := Anomalies(series, 168)
	require.NoError(t, err)
	for _, a := range found {
		delete(put, a.At)
	}
	require.Empty(t, put)
	require.Less(t, len(found), len(series)/15)
}

func TestTooShort(t *testing.T) {
	_, err := FitHoltWinters(make([]float64, 47), 24)
	require.ErrorIs(t, err, ErrShort)
	_, err = NewNaive(make([]float64, 47), 24)
	require.ErrorIs(t, err, ErrShort)
	_, err = Backtest(make([]float64, 60), 24, 24, 1)
	require.ErrorIs(t, err, ErrShort)
	_, err = Anomalies(nil, 1)
	require.ErrorContains(t, err, "at least 2 counts")
	m, err := FitHoltWinters(make([]float64, 48), 24)
	require.NoError(t, err)
	require.Equal(t, make([]Point, 3), m.Forecast(3))
	none, err := Anomalies(make([]float64, 480), 24)
	require.NoError(t, err)
	require.Empty(t, none)
}
