package web

import (
	"embed"
	"net/http"
)

// The live page: three files that load nothing from elsewhere.

//go:embed page
var pageFiles embed.FS

// policy lets the page load what this server has, and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// page serves the page's files, and the events that move it.
func (h *Handler) page() {
	for path, file := range map[string]struct{ name, kind string }{
		"/":         {"index.html", "text/html; charset=utf-8"},
		"/page.css": {"page.css", "text/css; charset=utf-8"},
		"/page.js":  {"page.js", "text/javascript; charset=utf-8"},
	} {
		text, err := pageFiles.ReadFile("page/" + file.name)
		if err != nil {
			panic(err) // it is embedded
		}
		h.get(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", file.kind)
			w.Header().Set("Content-Security-Policy", policy)
			w.Header().Set("Cache-Control", "no-cache")
			_, _ = w.Write(text) // an error is the client's
		})
	}
	h.get("/events", h.events)
}
