package web

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
)

// count answers with the count of a key in a window.
func (h *Handler) count(r *http.Request) (any, error) {
	p := parse(r)
	key, at := variable(r, h.words.key), p.minute("minute", variable(r, "minute"))
	in, err := h.level(r.Context(), p)
	if err != nil {
		return nil, err
	}
	c, err := in.countAt(r.Context(), key, at)
	return answer{{h.words.key, key}, {"minute", program.ShortMinute(c.Start)}, {h.words.item, c.N}, {"state", c.State}}, err
}

// countAt reads one count: an open zero where nothing is stored.
func (in level) countAt(ctx context.Context, user string, at time.Time) (tumble.Count, error) {
	c, err := in.Count(ctx, user, at)
	if errors.Is(err, tumble.ErrNoDefinition) {
		start, end := in.window.Bounds(at)
		return tumble.Count{Key: user, Start: start, End: end}, nil
	}
	return c, err
}

// history answers with the counts of a key in the windows of a range.
func (h *Handler) history(r *http.Request) (any, error) {
	in, from, to, err := h.span(r)
	if err != nil {
		return nil, err
	}
	key, clicks := variable(r, h.words.key), []answer{}
	counts, sum, err := tumble.History(r.Context(), in, key, from, to)
	if errors.Is(err, tumble.ErrNoDefinition) {
		err, sum = nil, tumble.Count{}
	}
	for _, c := range counts {
		clicks = append(clicks, answer{{"minute", program.ShortMinute(c.Start)}, {h.words.item, c.N}, {"state", c.State}})
	}
	return answer{{h.words.key, key}, {"total", sum.N}, {"state", sum.State}, {h.words.item, clicks}}, err
}

// minutes answers with what each window of a range adds up to.
func (h *Handler) minutes(r *http.Request) (any, error) {
	in, from, to, err := h.span(r)
	if err != nil {
		return nil, err
	}
	totals, err := in.Windows(r.Context(), from, to)
	if errors.Is(err, tumble.ErrNoDefinition) {
		err = nil
	}
	minutes := []answer{}
	for _, t := range totals {
		minutes = append(minutes, answer{{"minute", program.ShortMinute(t.Start)}, {h.words.keys, t.Keys}, {h.words.item, t.N}, {"state", t.State}})
	}
	return answer{{"minutes", minutes}}, err
}

// top answers with the highest counts of a window.
func (h *Handler) top(r *http.Request) (any, error) {
	p := parse(r)
	at, n := p.minute("minute", variable(r, "minute")), p.number("n", 10, maxTop)
	in, err := h.level(r.Context(), p)
	if err != nil {
		return nil, err
	}
	page, total, err := in.readTop(r.Context(), at, n)
	return answer{
		{"minute", program.ShortMinute(page.Start)}, {"state", page.State}, {h.words.keys, total.Keys}, {h.words.item, total.N},
		{"top", h.countsOf(page)},
	}, err
}

// readTop reads the highest counts of a window and its total, with a state that holds
// of both.
func (in level) readTop(ctx context.Context, at time.Time, n int) (page tumble.Page, total tumble.Total, err error) {
	for tries := 1; ; tries++ {
		page, err = in.Top(ctx, at, n)
		if page, err = in.orEmpty(at, page, err); err != nil {
			return page, total, err
		}
		totals, err := in.Windows(ctx, page.Start, page.End)
		if err != nil && !errors.Is(err, tumble.ErrNoDefinition) {
			return page, total, err
		}
		if total = (tumble.Total{}); len(totals) > 0 {
			total = totals[0]
		}
		switch {
		case page.State == tumble.Open || page.State == tumble.Expired:
			return page, total, nil
		case total.State == tumble.Expired:
			page.State = tumble.Expired
			return page, total, nil
		case page.Term == total.Term, len(totals) == 0 && len(page.Counts) == 0:
			return page, total, nil // the total came later: it is at least as final
		case tries == 3: // a term changes once a window, without a loss
			page.State = tumble.Open
			return page, total, nil
		}
	}
}

// users answers, page by page, with all counts of a window.
func (h *Handler) users(r *http.Request) (any, error) {
	p := parse(r)
	at, limit := p.minute("minute", variable(r, "minute")), p.number("limit", 1000, maxLimit)
	in, err := h.level(r.Context(), p)
	if err != nil {
		return nil, err
	}
	cursor := p.query.Get("cursor")
	page, err := in.Scan(r.Context(), at, cursor, limit)
	if cursor != "" && errors.Is(err, tumble.ErrNoDefinition) {
		err = tumble.ErrCursor // where nothing is stored there was no page before
	}
	page, err = in.orEmpty(at, page, err)
	return answer{{"minute", program.ShortMinute(page.Start)}, {h.words.keys, h.countsOf(page)}, {"cursor", page.Cursor}}, err
}

// orEmpty returns an open page without counts where nothing is stored.
func (in level) orEmpty(at time.Time, page tumble.Page, err error) (tumble.Page, error) {
	if errors.Is(err, tumble.ErrNoDefinition) {
		page, err = tumble.Page{}, nil
		page.Start, page.End = in.window.Bounds(at)
	}
	return page, err
}

// countsOf returns the counts of a page.
func (h *Handler) countsOf(p tumble.Page) []answer {
	counts := make([]answer, len(p.Counts))
	for i, c := range p.Counts {
		counts[i] = answer{{h.words.key, c.Key}, {h.words.item, c.N}}
	}
	return counts
}

type progressAnswer struct {
	Partitions []partitionProgress `json:"partitions"`
	Frontier   *time.Time          `json:"frontier"`
}

type partitionProgress struct {
	Partition string     `json:"partition"`
	Offset    int64      `json:"offset"`
	Watermark *time.Time `json:"watermark"`
}

// progress answers how far counting has come.
func (h *Handler) progress(r *http.Request) (any, error) {
	p, err := h.cfg.Counts.Progress(r.Context())
	if errors.Is(err, tumble.ErrNoDefinition) {
		err = nil
	}
	so := progressAnswer{[]partitionProgress{}, program.OrNull(p.Frontier)}
	for _, part := range p.Partitions {
		so.Partitions = append(so.Partitions, partitionProgress{part.ID, part.Offset, program.OrNull(part.Watermark)})
	}
	return so, err
}
