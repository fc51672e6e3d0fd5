//go:build servers

package browsertest

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"image/png"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
	"github.com/tumblestream/tumble/web"
)

var pictures = flag.String("pictures", "", "`folder` to leave screenshots in")

// A site counts clicks and shows them.
type site struct {
	t        *testing.T
	events   chan tumble.Event
	counts   *memory.Sink
	pipeline *tumble.Pipeline
	addr     string
	server   *http.Server
}

// nasty is a user who would like to be a script.
const nasty = `"><img src=x onerror="window.taken=1"><script>window.taken=2</script>`

func newSite(t *testing.T) *site {
	s := &site{t: t, events: make(chan tumble.Event, 1024), counts: memory.New(memory.Config{})}
	source, err := channel.New(channel.Config{ID: "clicks", Events: s.events})
	require.NoError(t, err)
	s.pipeline, err = tumble.New(tumble.Config{
		Source: source, Sink: s.counts,
		Window: tumble.Window{Size: time.Minute}, Rollups: []tumble.Rollup{{Window: tumble.Window{Size: 10 * time.Minute}}},
		FlushInterval: 10 * time.Millisecond,
	})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.pipeline.Run(context.Background()) }()
	t.Cleanup(func() {
		close(s.events)
		require.NoError(t, <-done)
	})
	s.serve("127.0.0.1:0")
	t.Cleanup(func() { s.stop() })
	return s
}

// expected is a forecast for the picture: what the last ten windows were, give or take.
func expected(ctx context.Context, r tumble.Reader, from time.Time) ([]web.Band, error) {
	def, err := r.Definition(ctx)
	if err != nil {
		return nil, err
	}
	totals, err := r.Windows(ctx, from.Add(-10*def.Window.Size), from)
	if err != nil || len(totals) < 10 {
		return nil, err
	}
	var bands []web.Band
	for i := range 8 {
		start := from.Add(time.Duration(i) * def.Window.Size)
		middle := float64(totals[len(totals)-1].N) * (1 + 0.25*math.Sin(float64(i)/3))
		spread := 40 + 25*float64(i)
		bands = append(bands, web.Band{Start: start, End: start.Add(def.Window.Size), Low: middle - spread, Middle: middle, High: middle + spread})
	}
	return bands, nil
}

func (s *site) serve(addr string) {
	h, err := web.New(web.Config{Counts: s.counts, Stats: s.pipeline.Stats, Forecast: expected})
	require.NoError(s.t, err)
	l, err := net.Listen("tcp", addr)
	require.NoError(s.t, err)
	s.addr = l.Addr().String()
	s.server = &http.Server{Handler: h}
	s.server.RegisterOnShutdown(h.Close)
	go s.server.Serve(l)
}

func (s *site) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	require.NoError(s.t, s.server.Shutdown(ctx))
}

// history has users click in the 45 minutes before now, in waves.
func (s *site) history(now time.Time) {
	for m := 45; m >= 0; m-- {
		at := now.Truncate(time.Minute).Add(-time.Duration(m) * time.Minute)
		n := int(500 + 300*math.Sin(float64(m)/5) + 90*math.Sin(float64(m)*1.7))
		for i := range n {
			when := at.Add(time.Duration(i) * time.Minute / time.Duration(n))
			if when.After(now) {
				break
			}
			s.click(fmt.Sprintf("user_%d", 1+(i*i*7+m)%(3+i%40)), when)
		}
	}
	s.click(nasty, now)
}

func (s *site) click(user string, at time.Time) { s.events <- tumble.Event{Key: user, Time: at} }

// answer is what the API says.
func (s *site) answer(target string, x any) {
	r, err := http.Get("http://" + s.addr + target)
	require.NoError(s.t, err)
	defer r.Body.Close()
	require.Equal(s.t, 200, r.StatusCode)
	require.NoError(s.t, json.NewDecoder(r.Body).Decode(x))
}

// A tab is a page in Chromium.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	troubles []string // what the console and the policy have to say
}

func chromium(t *testing.T) context.Context {
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"), chromedp.NoSandbox, // it sees our own pages alone, and a container's root has no sandbox
		chromedp.WindowSize(1200, 800))...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	require.NoError(t, chromedp.Do(ctx), "chromium starts")
	return ctx
}

func open(t *testing.T, browser context.Context, url string, before ...action) *tab {
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	p := &tab{t: t, ctx: ctx}
	p.do(before...)
	console := chromedp.Console(ctx)
	go func() {
		for m, err := range console {
			if err != nil {
				return
			}
			p.mu.Lock()
			p.troubles = append(p.troubles, m.String())
			p.mu.Unlock()
		}
	}()
	p.do(chromedp.Navigate(url))
	p.until(`document.getElementById("status").className === "live"`)
	return p
}

type action = chromedp.Action[chromedp.Void]

func (p *tab) do(actions ...action) {
	p.t.Helper()
	require.NoError(p.t, chromedp.Do(p.ctx, actions...))
}

// eval returns what an expression of JavaScript is.
func eval[T any](p *tab, expression string) T {
	p.t.Helper()
	x, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression))
	require.NoError(p.t, err, expression)
	return x
}

func (p *tab) until(expression string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		x, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool](expression))
		return err == nil && x
	}, 30*time.Second, 50*time.Millisecond, "%s; the page says: %s", expression, p.text("body"))
}

func (p *tab) text(id string) string {
	p.t.Helper()
	return eval[string](p, fmt.Sprintf("document.querySelector(%q).textContent", id))
}

// choose sets the length of a window.
func (p *tab) choose(window string) {
	p.t.Helper()
	eval[bool](p, fmt.Sprintf(`document.getElementById("window").value = %q; document.getElementById("window").dispatchEvent(new Event("change"))`, window))
}

// quiet requires that nothing went wrong that only the console knows of.
func (p *tab) quiet() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Empty(p.t, p.troubles)
}

// picture takes a screenshot, and wants something to be on it.
func (p *tab) picture(name string) {
	p.t.Helper()
	time.Sleep(400 * time.Millisecond) // bars are moving
	shot, err := chromedp.Run(p.ctx, chromedp.FullScreenshot(100))
	require.NoError(p.t, err)
	image, err := png.Decode(bytes.NewReader(shot))
	require.NoError(p.t, err)
	colours := map[[3]uint32]bool{}
	for y := image.Bounds().Min.Y; y < image.Bounds().Max.Y; y += 3 {
		for x := image.Bounds().Min.X; x < image.Bounds().Max.X; x += 3 {
			r, g, b, _ := image.At(x, y).RGBA()
			colours[[3]uint32{r >> 8, g >> 8, b >> 8}] = true
		}
	}
	require.Greater(p.t, len(colours), 10, "%s is blank", name)
	if *pictures != "" {
		require.NoError(p.t, os.WriteFile(filepath.Join(*pictures, name+".png"), shot, 0o644))
	}
}

func TestPage(t *testing.T) {
	browser := chromium(t)
	s := newSite(t)
	s.history(time.Now())
	url := "http://" + s.addr + "/"
	p := open(t, browser, url)
	const bars = `document.querySelectorAll("#chart rect").length`

	t.Run("agrees with the API", func(t *testing.T) {
		p.until(bars + " > 40")
		require.Eventually(t, func() bool { // the newest window may end between the two
			var minutes struct {
				Minutes []struct {
					Minute        string
					Users, Clicks int64
				}
			}
			now := time.Now().UTC()
			s.answer("/minutes?from="+now.Add(-time.Hour).Format("2006-01-02T15:04")+"&to="+now.Add(time.Hour).Format("2006-01-02T15:04"), &minutes)
			last := minutes.Minutes[len(minutes.Minutes)-1]
			digits := func(s string) string { return strings.ReplaceAll(s, ",", "") }
			return digits(p.text("#total")) == fmt.Sprint(last.Clicks) && digits(p.text("#users")) == fmt.Sprint(last.Users) &&
				strings.HasSuffix(last.Minute, "T"+eval[string](p, `new Date(Date.parse(shown.bars.at(-1).start+"Z")).toISOString().slice(11,16)`))
		}, 20*time.Second, 100*time.Millisecond)
		require.Equal(t, 1, eval[int](p, `document.querySelectorAll("#chart rect.open").length`))
		require.Greater(t, eval[int](p, `document.querySelectorAll("#chart rect.closed").length`), 40)
		require.Equal(t, "Clicks, live", eval[string](p, "document.title"))
		require.Equal(t, "late 0, rejected 0", p.text("#books"))
		require.True(t, eval[bool](p, `document.querySelector("path.band") !== null && !document.getElementById("expected").hidden`))
	})

	t.Run("moves", func(t *testing.T) {
		before := eval[string](p, `document.getElementById("total").textContent + document.querySelector("#chart rect:last-of-type").getAttribute("height")`)
		for range 200 {
			s.click("user_1", time.Now())
		}
		p.until(`document.getElementById("total").textContent + document.querySelector("#chart rect:last-of-type").getAttribute("height") !== ` + fmt.Sprintf("%q", before))
		p.until(`document.querySelector("#top .name").textContent === "user_1"`)
	})

	t.Run("one key's curve, by keyboard", func(t *testing.T) {
		p.do(chromedp.Focus(chromedp.CSS("#window")), chromedp.KeyEvent(kb.Tab))
		require.Equal(t, "user_1", eval[string](p, "document.activeElement.dataset.key"))
		require.NotEqual(t, "none", eval[string](p, "getComputedStyle(document.activeElement).outlineStyle"), "focus can be seen")
		p.do(chromedp.KeyEvent(kb.Enter))
		p.until(`document.getElementById("title").textContent === "Clicks of user_1" && document.querySelectorAll("#chart rect.user").length > 40`)
		p.until(`Array.from(document.querySelectorAll("#chart rect.user")).some((r) => r.getAttribute("height") > 1)`)
		require.Equal(t, "true", eval[string](p, `document.querySelector('[data-key="user_1"]').getAttribute("aria-pressed")`))
		time.Sleep(1500 * time.Millisecond) // another event comes, and the focus stays
		require.Equal(t, "user_1", eval[string](p, "document.activeElement.dataset.key"))
		p.do(chromedp.Click(chromedp.CSS("#all")))
		p.until(`document.getElementById("title").textContent === "Clicks of all users"`)
	})

	t.Run("roll-ups", func(t *testing.T) {
		require.Equal(t, "1m,10m", eval[string](p, `Array.from(document.getElementById("window").options, (o) => o.textContent).join()`))
		p.choose("10m0s")
		p.until(`shown.window === "10m0s" && ` + bars + ` >= 5 && ` + bars + ` <= 6`)
		p.choose("1m0s")
		p.until(`shown.window === "1m0s" && ` + bars + " > 40")
	})

	t.Run("a script in a key", func(t *testing.T) {
		for range 400 {
			s.click(nasty, time.Now())
		}
		p.until(`document.querySelector("#top .name").textContent === ` + fmt.Sprintf("%q", nasty))
		p.do(chromedp.Click(chromedp.CSS("#top button")))
		p.until(`document.getElementById("title").textContent.endsWith(` + fmt.Sprintf("%q", nasty) + `)`)
		p.until(`Array.from(document.querySelectorAll("#chart rect.user")).some((r) => r.getAttribute("height") > 1)`)
		require.True(t, eval[bool](p, `window.taken === undefined && document.querySelector("main img, main script") === null`))
		p.do(chromedp.Click(chromedp.CSS("#all")))
	})

	t.Run("names for a screen reader", func(t *testing.T) {
		require.Equal(t, "status", eval[string](p, `document.getElementById("status").getAttribute("role")`))
		require.Zero(t, eval[int](p, `Array.from(document.querySelectorAll("button, select, a, svg")).filter((e) =>
			!(e.textContent.trim() || e.getAttribute("aria-label") || e.getAttribute("aria-labelledby"))).length`))
		require.Regexp(t, `^\d+ windows, at most [\d,]+ clicks, the last [\d,]+, open\. The next is expected between [\d,]+ and [\d,]+\.$`, eval[string](p, `document.getElementById("summary").textContent`))
	})
	p.quiet()

	t.Run("a server that comes back", func(t *testing.T) {
		s.stop()
		p.until(`document.getElementById("status").className === "away" && document.getElementById("status").textContent === "reconnecting"`)
		s.serve(s.addr)
		p.until(`document.getElementById("status").className === "live"`)
		before := p.text("#total")
		s.click("user_2", time.Now())
		p.until(`document.getElementById("total").textContent !== ` + fmt.Sprintf("%q", before))
	})
}

// Pictures of the page, as those in docs/images: light, dark, on a phone.
func TestPictures(t *testing.T) {
	browser := chromium(t)
	s := newSite(t)
	s.history(time.Now())
	url := "http://" + s.addr + "/"
	colours := map[string]string{}
	for name, before := range map[string][]action{
		"page-light": {chromedp.EmulateViewport(1200, 760), scheme("light")},
		"page-dark":  {chromedp.EmulateViewport(1200, 760), scheme("dark")},
		"page-phone": {chromedp.EmulateViewport(390, 844, chromedp.EmulateScale(2), chromedp.EmulateMobile), scheme("light")},
	} {
		p := open(t, browser, url, before...)
		p.until(`document.querySelectorAll("#chart rect").length > 40`)
		require.LessOrEqual(t, eval[int](p, "document.documentElement.scrollWidth"), eval[int](p, "document.documentElement.clientWidth"), "%s scrolls sideways", name)
		colours[name] = eval[string](p, "getComputedStyle(document.body).backgroundColor")
		p.picture(name)
		p.quiet()
	}
	require.NotEqual(t, colours["page-light"], colours["page-dark"])
}

// scheme has the browser prefer light or dark.
func scheme(prefer string) action {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: prefer}},
		})
		return err
	})
}
