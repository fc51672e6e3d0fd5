// Package browsertest looks at the page of package web in a real Chromium: that it
// loads, moves, agrees with the API, survives a restart of its server, takes a script
// in a key for text, and can be used by keyboard, on a phone, in the dark. It is a
// module of its own, so that nobody else needs a browser's driver:
//
//	scripts/install chromium
//	cd web/browsertest && go test -tags servers ./...
//
// With -pictures DIR it leaves its screenshots there: those in docs/images are made by
//
//	go test -tags servers ./... -pictures ../../docs/images
package browsertest
