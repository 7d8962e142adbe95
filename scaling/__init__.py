"""What long thinking costs, and whether chunked thinking pays: measure, fit and predict LongCoT and Delethink.

Everything public is here by name and imported when first used: `import scaling` alone loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.api import fit as fit
    from scaling.api import report as report
    from scaling.api import run as run
    from scaling.errors import ScalingError as ScalingError
    from scaling.laws import Fit as Fit
    from scaling.laws import Job as Job
    from scaling.laws import crossover as crossover
    from scaling.laws import fit_curve as fit_curve
    from scaling.laws import fit_frame as fit_frame
    from scaling.laws import totals as totals
    from scaling.lengths import format_tokens as format_tokens
    from scaling.lengths import parse_lengths as parse_lengths
    from scaling.lengths import parse_tokens as parse_tokens
    from scaling.planning import plan as plan
    from scaling.predict.plan import Plan as Plan
    from scaling.results import Row as Row
    from scaling.results import Store as Store
    from scaling.results import load as load
    from scaling.results import newest_run as newest_run
    from scaling.thinking import Delethink as Delethink
    from scaling.thinking import Environment as Environment
    from scaling.thinking import LongCoT as LongCoT

_HOMES = {
    "scaling.api": ["fit", "report", "run"],
    "scaling.errors": ["ScalingError"],
    "scaling.lengths": ["format_tokens", "parse_lengths", "parse_tokens"],
    "scaling.laws": ["Fit", "Job", "crossover", "fit_curve", "fit_frame", "totals"],
    "scaling.planning": ["plan"],
    "scaling.predict.plan": ["Plan"],
    "scaling.results": ["Row", "Store", "load", "newest_run"],
    "scaling.thinking": ["Delethink", "Environment", "LongCoT"],
}
"""Where each public name lives; the imports above tell type checkers the same."""

_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("thinking-cost")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, "__version__"])
