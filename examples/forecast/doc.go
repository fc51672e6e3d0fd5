// Command forecast says what the next windows will count, from those that are closed:
//
//	go run ./examples/forecast -name clickstream -window 1h -season 24 -ahead 24
//
// It reads closed and final windows alone, since one that is open has not all of its
// events, and windows without a count as 0. It tries Holt-Winters' smoothing and the
// seasonal naive forecast on the last windows, prints how good each was, and what the
// better one says, with bounds that are to hold 95 of 100 counts; and it names the windows
// that nothing explained. package smoothing has the models.
//
// With -serve it shows the live page of package web, with the forecast as a band. With
// -csv it forecasts the last column of a file, to try it out without servers:
//
//	go run ./examples/forecast -csv examples/forecast/smoothing/testdata/flights.csv -season 168
//
// It is a module of its own, reached through go.work.
package main
