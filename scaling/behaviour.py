"""What the traces of studies show, for reports: a chapter a run, and the page on which they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import FitError, UsageError
from scaling.results import Store

if TYPE_CHECKING:
    import pandas as pd

    from reports.chapter import Chapter
    from scaling.laws import Fit

    Pricing = tuple[pd.DataFrame, list[Fit]]


def study_chapters(
    stores: Mapping[str, Store],
    pricing: Pricing | None = None,
    remark: Callable[[str], None] = lambda _: None,
    rules: Path | None = None,
) -> list[Chapter]:
    """The chapters of those runs that are of a study, in order; `remark` gets why one has none yet.

    `pricing`: the rows of all the runs and their laws, by which traces are priced. `rules`: a file of them, by
    which stages of thoughts are labelled. Raises `StoreError` for damaged traces, `UsageError` for what are no rules.
    """

    from reports import stages, truncation
    from reports.arms import sampling_section, slug
    from reports.thoughts import thoughts_chapter
    from studies.arm_costs import measured
    from studies.trace_frame import labels
    from studies.truncation import analyse, results

    def priced(name: str, store: Store) -> Chapter:
        from reports.test_time import test_time_chapter

        return test_time_chapter(name, priced_record(store, pricing, remark))

    made = {"probe": _probe, "test-time": priced}
    chapters = _training(stores)
    for name, store in stores.items():
        make = made.get(str(store.manifest.get("study")))
        if make is None:
            continue
        try:
            chapter = make(name, store)
        except FitError as error:
            remark(f"{name}: {error}")
            continue
        if took := measured(store):
            chapter.sections.append(sampling_section(f"{slug(name)}-", took))
        thoughts = thoughts_chapter(name, thoughts_of(store.path))
        if lacking := unfinished(store):
            for each in (chapter, thoughts):
                each.sentences.insert(0, lacking)
        if forced := [one for arm in labels(store) for one in results(store, arm)]:
            try:
                thoughts.sections.append(truncation.section(f"{slug(name)}-", analyse(forced)))
            except FitError as error:
                remark(f"{name}: {error}")
        if rules is not None:
            thoughts.sections.append(stages.section(f"{slug(name)}-", staged(store, rules)))
        chapters += [chapter, thoughts]
    return chapters


def _training(stores: Mapping[str, Store]) -> list[Chapter]:
    """One chapter of all runs that trained, none where there are none."""
    training = {name: store for name, store in stores.items() if store.manifest.get("kind") == "training"}
    if not training:
        return []
    from reports.training import training_chapter
    from studies.checkpoints import steps_of

    trained = {
        name: {"recipe": store.manifest["recipe"], "lines": lines}
        for name, store in training.items()
        if (lines := steps_of(store.path))
    }
    return [training_chapter(trained)] if trained else []


def priced_record(
    store: Store, pricing: Pricing | None = None, remark: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """What a run of `scaling test-time` shows (`studies.test_time_scaling.analyse`).

    Traces are priced by the measured laws where those cover every arm, else by the planner on the GPU that the run
    names, for each arm's own model; `remark` gets why there is no price.
    """
    from studies.test_time_scaling import analyse
    from studies.trace_cost import by_plan, by_rows
    from studies.trace_frame import frame

    options, traces = store.manifest.get("options", {}), frame(store)
    why = "no run that measured its environments is reported with it, and it names no --gpu"
    if pricing is not None and pricing[1]:
        try:
            return analyse(traces, by_rows(*pricing, hourly=options.get("price")))
        except FitError as error:
            why = str(error)
    if options.get("gpu"):
        from scaling.planning import ask, for_model

        base = ask(gpu=options["gpu"], gpus=options["gpus"], price=options["price"])
        models = {arm["model"]["name"]: arm["model"]["config"] for arm in store.manifest["arms"]}
        questions = {name: for_model(base, name, config) for name, config in models.items()}
        try:
            return analyse(traces, by_plan(questions))
        except UsageError as error:
            why = str(error)
    remark(f"{store.path.name} has no prices: {why}")
    return analyse(traces)


def thoughts_of(place: Path) -> dict[str, Any]:
    """What the traces of a study's run, or of a JSONL file, look like (`studies.thoughts.analyse`).

    Raises `UsageError` for a run without traces, `StoreError` for what cannot be read, `FitError` where none was
    judged.
    """
    from scaling.traces import read_traces
    from studies.thoughts import analyse, by_arm
    from studies.trace_frame import labels, records

    if place.is_file():
        return analyse(by_arm(read_traces(place)))
    store = Store.open(place)
    return analyse({label: partial(records, store, label) for label in labels(store)})


def staged(store: Store, rules: Path) -> dict[str, Any]:
    """Stages and cycles of all the study's traces, by the rules in a file. Raises as `read_rules` and `summarise`."""
    from studies.stages import label_records, read_rules, summarise
    from studies.trace_frame import labels, records

    read = read_rules(rules)
    labelled = (trace for arm in labels(store) for trace in label_records(records(store, arm), read))
    return summarise(labelled, read)


def unfinished(store: Store) -> str | None:
    """What a study's run still lacks of the traces that it was begun for, in a sentence; None where that is nothing."""
    from studies.trace_frame import labels, records

    wanted = len(arms := labels(store)) * asked_of_an_arm(store)
    there = sum(1 for arm in arms for _ in records(store, arm))
    if there >= wanted:
        return None
    return (
        f"Not finished: {wanted - there:,} of {wanted:,} traces are still to be sampled. Short traces end first, so "
        "figures of an arm that lacks some lean to them."
    )


def asked_of_an_arm(store: Store) -> int:
    """Traces that every arm of a study's run is to have."""
    asked: int = store.manifest["samples"] * sum(task["asked"] for task in store.manifest["tasks"])
    return asked


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

    preset = PRESETS.get(str(store.manifest.get("options", {}).get("preset")))
    published = preset.published if preset else ()
    return probe_chapter(name, analyse(frame(store), asked=asked_of_an_arm(store), published=published))
