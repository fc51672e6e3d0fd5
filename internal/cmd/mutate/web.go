package main

// ofWeb are the guards of what is served over HTTP: that it says no more than the
// store does, and holds nobody up.
var ofWeb = []directed{
	{"TestTotalBesideTheTop", mutation{"the term of the total", "web/counts.go", "case page.Term == total.Term,", "case true,", "calls a total final that was lost and counted again"}},
	{"TestTotalBesideTheTop", mutation{"expired since", "web/counts.go", "\t\t\tpage.State = tumble.Expired\n", "", "calls a window final whose counts may be gone"}},
	{"TestStoreUnreachable", mutation{"errors name no address", "web/web.go", "program.WriteError(w, http.StatusServiceUnavailable, errUnavailable)\n\t\t}\n\t}, http", "program.WriteError(w, http.StatusServiceUnavailable, err)\n\t\t}\n\t}, http", "tells strangers where the store is"}},
	{"TestStoreHangs", mutation{"a store that hangs", "web/web.go", "storeTimeout)\n\t\tdefer cancel()\n\t\tx, err := get", "100*storeTimeout)\n\t\tdefer cancel()\n\t\tx, err := get", "keeps requests for ever"}},
	{"TestHistoryIsBounded", mutation{"ranges are bounded", "web/params.go", "n > maxWindows {", "n > maxWindows && false {", "reads the store for minutes for one request"}},
	{"TestUserIsPathEscaped", mutation{"parts are marked", "web/web.go", "RawPath: marked(r.URL.EscapedPath())", "RawPath: r.URL.EscapedPath()", "does not find a key with slashes"}},
	{"TestEventsAfterALongSilence", mutation{"a silent name is shown", "web/live.go", "err == nil && len(totals) == 0 && from.After(earliest)", "false", "shows nothing of a name that has been silent for an hour"}},
	{"TestStreamsAreBounded", mutation{"streams are bounded", "web/live.go", "h.live.streams.Add(1) > maxStreams", "h.live.streams.Add(1) < 0", "lets pages take the memory of a service"}},
	{"TestEventsThatStayTheSame", mutation{"only what changed", "web/live.go", "if !bytes.Equal(text, last) {", "if !bytes.Equal(text, last) || true {", "sends the same every second"}},
	{"TestEventsThatStayTheSame", mutation{"alive", "web/live.go", "time.Since(wrote) >= aliveEvery", "time.Since(wrote) < 0", "looks dead to proxies"}},
	{"TestBand", mutation{"a forecast is kept", "web/live.go", "k.band != nil && from.Equal(k.bandFrom)", "false", "forecasts every second"}},
	{"TestBand", mutation{"not of an open window", "web/live.go", "return t.State == tumble.Open })", "return false })", "forecasts from windows that are not complete"}},
	{"TestBand", mutation{"bounds are finite", "web/live.go", "if math.IsInf(b.High-b.Low, 0) || math.IsNaN(b.High-b.Low+b.Middle) {", "if math.IsInf(b.High, -1) {", "shows nothing because of a forecast"}},
	{"TestClose", mutation{"closed for new ones", "web/live.go", "\tcase <-h.closed:\n\t\tprogram.WriteError", "\tcase <-r.Context().Done():\n\t\tprogram.WriteError", "hangs a shutdown on a page that comes back"}},
	{"TestWordsThatAreRefused", mutation{"words of other meanings", "web/words.go", "|| taken.MatchString(word)", "", "answers with a name twice"}},
	{"TestWordsThatAreRefused", mutation{"different words", "web/words.go", "w.item == w.key || w.item == w.keys || w.key == w.keys", "w.item == w.key || w.item == w.keys", "answers with a name twice"}},
}
