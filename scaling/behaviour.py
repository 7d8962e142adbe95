"""What the traces of studies show, for reports: a chapter a run, and the page on which they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from scaling.errors import FitError
from scaling.results import Store

if TYPE_CHECKING:
    from reports.chapter import Chapter


def study_chapters(stores: Mapping[str, Store], remark: Callable[[str], None] = lambda _: None) -> list[Chapter]:
    """The chapters of those runs that are of a study, in order; `remark` gets why one has none yet.

    Raises `StoreError` for damaged traces.
    """
    made = {"probe": _probe}
    chapters = []
    for name, store in stores.items():
        make = made.get(str(store.manifest.get("study")))
        if make is None:
            continue
        try:
            chapters.append(make(name, store))
        except FitError as error:
            remark(f"{name}: {error}")
    return chapters


def trace_page(stores: Mapping[str, Store]) -> str | None:
    """The page on which all traces of these runs are read; None where none is of a study."""
    from reports.reader import reader
    from studies.trace_frame import is_study

    studies = {name: _records(store) for name, store in stores.items() if is_study(store)}
    return reader(studies) if studies else None


def _records(store: Store) -> Iterator[dict[str, Any]]:
    from studies.trace_frame import labels, records

    for label in labels(store):
        yield from records(store, label)


def _probe(name: str, store: Store) -> Chapter:
    from reports.probe import probe_chapter
    from studies.markovian_probe import analyse
    from studies.probe_presets import PRESETS
    from studies.trace_frame import frame

    manifest = store.manifest
    asked = manifest["samples"] * sum(task["asked"] for task in manifest["tasks"])
    preset = PRESETS.get(str(manifest.get("options", {}).get("preset")))
    return probe_chapter(name, analyse(frame(store), asked=asked, published=preset.published if preset else ()))
