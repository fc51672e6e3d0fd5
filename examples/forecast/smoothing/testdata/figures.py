"""Figures of statsmodels for flights.csv, to compare with: see README.md."""

import csv
import json
import warnings

import numpy
import statsmodels
from statsmodels.tsa.holtwinters import ExponentialSmoothing

warnings.simplefilter("ignore")
with open("flights.csv") as file:
    series = numpy.array([float(row["flights"]) for row in csv.DictReader(file)])


def start(y, m):
    """The states before the series, as model_test.go has them."""
    first, second = y[:m].mean(), y[m : 2 * m].mean()
    return {
        "initial_level": first,
        "initial_trend": (second - first) / m,
        "initial_seasonal": ((y[:m] - first) + (y[m : 2 * m] - second)) / 2,
    }


def model(y, m):
    return ExponentialSmoothing(y, trend="add", seasonal="add", seasonal_periods=m, initialization_method="known", **start(y, m))


def backtest(m, ahead, folds):
    mae = 0.0
    for fold in range(folds, 0, -1):
        at = len(series) - fold * ahead
        forecast = model(series[:at], m).fit().forecast(ahead)
        mae += numpy.abs(series[at : at + ahead] - forecast).sum() / (ahead * folds)
    return mae


answer = {"version": statsmodels.__version__, "seasons": {}}
for m in (24, 168):
    fixed = model(series, m).fit(smoothing_level=0.2, smoothing_trend=0.05, smoothing_seasonal=0.3, optimized=False)
    fitted = model(series, m).fit()
    answer["seasons"][m] = {
        "fixed": {"fitted_values": fixed.fittedvalues[-2 * m :].tolist(), "forecast": fixed.forecast(m).tolist(), "sse": fixed.sse},
        "fitted": {"sse": fitted.sse, "weights": [fitted.params[k] for k in ("smoothing_level", "smoothing_trend", "smoothing_seasonal")]},
        "backtest_mae": backtest(m, 24, 14),
    }
print(json.dumps(answer))
