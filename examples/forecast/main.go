package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/examples/forecast/smoothing"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/internal/redisdial"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/web"
)

var (
	server  = redisdial.Flag()
	noCache = redisdial.NoCache()
	name    = program.Flag("name", "clickstream", "`name` of the counts in Redis", program.Text)
	key     = flag.String("key", "", "`key` to forecast; empty: all of them together")
	window  = program.Flag("window", "", "`length` of the windows, such as 1h, one of those that are counted; empty: the finest", program.Level)
	season  = program.Flag("season", "24", "`number` of windows after which the same comes again: 24 hours, 7 days", program.Int(2, 100_000))
	ahead   = program.Flag("ahead", "24", "`number` of windows to forecast", program.Int(1, 10_000))
	seasons = program.Flag("seasons", "8", "`number` of seasons to learn from, and as many more as are tried out", program.Int(2, 1000))
	file    = flag.String("csv", "", "`file` to forecast instead: the numbers of its last column, after a line of headings")
	address = program.Flag("serve", "", "`address` to show the live page on, with the forecast; empty: print it and end", addressOrNone)
	asJSON  = flag.Bool("json", false, "print JSON")
)

func addressOrNone(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	return program.Address(s)
}

func main() {
	program.Main("forecast", "says what the next windows will count, from those that are closed.", run)
}

func run(ctx context.Context) error {
	if *file != "" {
		h, err := fromFile(*file)
		if err != nil {
			return program.FlagError("csv", err)
		}
		return report(os.Stdout, h)
	}
	server.DisableCache = *noCache
	client, err := redisdial.Connect(ctx, *server)
	if err != nil {
		return err
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: *name})
	if err != nil {
		return program.FlagError("name", err)
	}
	if *address != "" {
		return serve(ctx, counts)
	}
	var r tumble.Reader = counts
	if *window != nil {
		if r, err = counts.Rollup(**window); err != nil {
			return program.FlagError("window", err)
		}
	}
	h, err := read(ctx, r, *key, wanted(), time.Time{})
	if err != nil {
		return fmt.Errorf("%s: %w", *name, err)
	}
	return report(os.Stdout, h)
}

// wanted is how many windows are read.
func wanted() int { return int(*season**seasons) + int(*ahead)*folds }

// folds is how many times the models are tried out.
const folds = 4

// fromFile reads the last column of a file.
func fromFile(path string) (h history, err error) {
	f, err := os.Open(path)
	if err != nil {
		return h, err
	}
	defer f.Close()
	rows := csv.NewReader(f)
	for line := 1; ; line++ {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return h, nil
		}
		if err != nil {
			return h, err
		}
		if line == 1 {
			continue
		}
		x, err := strconv.ParseFloat(row[len(row)-1], 64)
		if err != nil || math.IsNaN(x) || math.IsInf(x, 0) {
			return h, fmt.Errorf("%s, line %d: %q is no number", path, line, row[len(row)-1])
		}
		h.counts = append(h.counts, x)
	}
}

// choose returns the scores of the models, and the better one, fitted to all counts. With
// too few counts to try them out it is the seasonal naive one.
func choose(counts []float64, season, ahead int) (smoothing.Model, string, []smoothing.Score, error) {
	scores, err := smoothing.Backtest(counts, season, ahead, folds)
	if err != nil && !errors.Is(err, smoothing.ErrShort) {
		return nil, "", nil, err
	}
	best := 0
	if len(scores) > 0 {
		best = smoothing.Best(scores)
	}
	m, err := smoothing.Fits[best].Fit(counts, season)
	return m, smoothing.Fits[best].Name, scores, err
}

// A said is what is printed as JSON.
type said struct {
	Model     string              `json:"model"`
	Scores    []smoothing.Score   `json:"scores"`
	Forecast  []saidPoint         `json:"forecast"`
	Anomalies []smoothing.Anomaly `json:"anomalies"`
}

type saidPoint struct {
	Start  string  `json:"start"`
	Low    float64 `json:"low"`
	Middle float64 `json:"middle"`
	High   float64 `json:"high"`
}

// report forecasts and prints.
func report(out io.Writer, h history) error {
	m, model, scores, err := choose(h.counts, int(*season), int(*ahead))
	if err != nil {
		return fmt.Errorf("%w (flag -season says how long one is)", err)
	}
	strange, err := smoothing.Anomalies(h.counts, int(*season))
	if err != nil {
		return err
	}
	answer := said{Model: model, Scores: scores, Anomalies: strange}
	at := h.next
	for i, p := range m.Forecast(int(*ahead)) {
		label := strconv.Itoa(len(h.counts) + i)
		if !at.IsZero() {
			label = at.UTC().Format(time.RFC3339)
			_, at = h.window.Bounds(at)
		}
		answer.Forecast = append(answer.Forecast, saidPoint{label, p.Low, p.Middle, p.High})
	}
	if *asJSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(answer)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	if len(scores) > 0 {
		fmt.Fprintf(out, "Tried out on the last %d counts, %d at a time:\n", folds*int(*ahead), *ahead)
		fmt.Fprintln(w, "model\tmean error\tscaled (MASE)\twithin bounds\t")
		for _, s := range scores {
			fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.0f %%\t\n", s.Model, s.MAE, s.MASE, 100*s.Coverage)
		}
		w.Flush()
	} else {
		fmt.Fprintf(out, "%d counts are too few to try models out on.\n", len(h.counts))
	}
	fmt.Fprintf(out, "\nForecast by %s:\n", model)
	fmt.Fprintln(w, "window\tlow\texpected\thigh\t")
	for _, p := range answer.Forecast {
		fmt.Fprintf(w, "%s\t%.0f\t%.1f\t%.0f\t\n", p.Start, math.Floor(p.Low), p.Middle, math.Ceil(p.High))
	}
	w.Flush()
	if len(strange) > 0 {
		fmt.Fprintln(out, "\nNot explained by trend or season:")
		fmt.Fprintln(w, "window\tcount\texpected\tdeviations\t")
		for _, a := range strange[max(0, len(strange)-10):] {
			label := strconv.Itoa(a.At)
			if h.starts != nil {
				label = h.starts[a.At].UTC().Format(time.RFC3339)
			}
			fmt.Fprintf(w, "%s\t%.0f\t%.1f\t%+.1f\t\n", label, a.Count, a.Expected, a.Deviations)
		}
		return w.Flush()
	}
	return nil
}

// bands is the Forecast of a web.Config.
func bands(ctx context.Context, r tumble.Reader, from time.Time) ([]web.Band, error) {
	h, err := read(ctx, r, "", wanted(), from)
	if err != nil {
		return nil, err
	}
	m, _, _, err := choose(h.counts, int(*season), int(*ahead))
	if err != nil {
		return nil, err
	}
	var all []web.Band
	start := h.next
	for _, p := range m.Forecast(int(*ahead)) {
		_, end := h.window.Bounds(start)
		all = append(all, web.Band{Start: start, End: end, Low: p.Low, Middle: p.Middle, High: p.High})
		start = end
	}
	return all, nil
}

// serve shows the live page until ctx ends.
func serve(ctx context.Context, counts tumble.Reader) error {
	listener, err := program.Listen(*address)
	if err != nil {
		return err
	}
	defer listener.Close()
	h, err := web.New(web.Config{Counts: counts, Forecast: bands})
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "forecast: serving %s on %s\n", *name, program.URL(listener, *address))
	return program.Serve(ctx, listener, h)
}
