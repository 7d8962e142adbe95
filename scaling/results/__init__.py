"""What a measurement leaves behind: rows, the store that keeps them safe, and ways to read them back."""

from scaling.results.row import ALLOCATED, PROFILED_MEANWHILE, SCHEMA_VERSION, Method, Phase, Row, Status, timed
from scaling.results.runs import Run, join, load, newest_run, open_runs
from scaling.results.store import Store, check_version, read_json

__all__ = [
    "ALLOCATED",
    "PROFILED_MEANWHILE",
    "SCHEMA_VERSION",
    "Method",
    "Phase",
    "Row",
    "Run",
    "Status",
    "Store",
    "check_version",
    "join",
    "load",
    "newest_run",
    "open_runs",
    "read_json",
    "timed",
]
