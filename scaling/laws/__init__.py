"""Cost laws: device-seconds per trace as a function of thinking tokens, fitted, selected, compared, extrapolated."""

from scaling.laws.compare import Crossover, Total, crossover, settled, total, totals
from scaling.laws.fit import Fit, Interval, Prediction, fit_curve
from scaling.laws.frame import CURVE_COLUMNS, FitWarning, at_boundary, fit_frame
from scaling.laws.models import LAWS, Law
from scaling.predict.job import Job

__all__ = [
    "CURVE_COLUMNS",
    "LAWS",
    "Crossover",
    "Fit",
    "FitWarning",
    "Interval",
    "Job",
    "Law",
    "Prediction",
    "Total",
    "at_boundary",
    "crossover",
    "fit_curve",
    "fit_frame",
    "settled",
    "total",
    "totals",
]
