package tumble

import (
	"context"
	"time"
)

// compareCuts warns if the sink holds windows of a calendar that this process would
// cut otherwise: its time zone data are not those of who counted them. Counts of such
// windows cannot be read here, and two processes that differ count into both.
func (p *Pipeline) compareCuts(ctx context.Context) {
	r, ok := p.cfg.Sink.(Reader)
	if !ok {
		return
	}
	for _, level := range p.def.Levels() {
		w := level.Window
		if w.Calendar == NoCalendar {
			continue
		}
		in, err := r.Rollup(w)
		var stored []Total
		if err == nil {
			stored, err = in.Windows(ctx, time.Unix(minTime, 0), time.Unix(maxTime, 0))
		}
		if err != nil { // counting will tell of it
			p.cfg.Logger.Debug("windows were not compared with the time zone data", "window", w, "error", err)
			return
		}
		differ := 0
		var t Total
		for _, s := range stored {
			if start, end := w.Bounds(s.Start); !start.Equal(s.Start) || !end.Equal(s.End) {
				differ, t = differ+1, s
			}
		}
		if differ > 0 {
			start, end := w.Bounds(t.Start)
			p.cfg.Logger.Warn("this process cuts windows otherwise than the one that counted them: bring the older time zone data up to date", "zone", w.Zone,
				"windows", differ, "stored", [2]time.Time{t.Start, t.End}, "here", [2]time.Time{start, end})
		}
	}
}
