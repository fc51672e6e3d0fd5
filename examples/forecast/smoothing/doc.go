// Package smoothing forecasts series of counts: exponential smoothing with a trend and
// a season (Holt-Winters, additive), beside the seasonal naive forecast, which says that
// what was a season ago comes again. It gives bounds for what it says, scores both on
// the past, and finds counts that neither the trend nor the season explains.
//
// The formulas are those of R. J. Hyndman and G. Athanasopoulos, "Forecasting:
// Principles and Practice", https://otexts.com/fpp3/: Holt-Winters' method in chapter 8,
// bounds and the mean absolute scaled error in chapter 5.
package smoothing
