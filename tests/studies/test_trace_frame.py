"""Traces of studies as one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import StoreError, UsageError
from scaling.results import Store
from studies.asking import begin
from studies.trace_frame import frame, records

Make = Callable[..., Any]


def test_a_row_says_how_its_trace_went(asked: Any, whole: Store) -> None:
    for row, record in zip(
        frame(whole).to_dict("records"),
        [record for _, record in sorted(asked.traces(whole).items(), key=_asked_order)],
        strict=True,
    ):
        assert row["response_lengths"] == [len(chunk["response"]) for chunk in record["chunks"]]
        assert row["thinking_tokens"] == sum(row["response_lengths"]) == record["thinking_tokens"]
        assert row["chunks"] == len(row["response_lengths"])
        assert row["ended"] == (record["chunks"][-1]["response"][-1] == 1)
        assert row["correct"] == (row["score"] == 1)
        assert json.loads(row["environment_parameters"]) == record["environment_parameters"]
    first = frame(whole).iloc[-1]
    assert (first["context_size"], first["state_size"], first["trained"]) == (8, 4, "delethink")
    assert frame(whole).iloc[0]["trained"] is None


def _asked_order(item: tuple[tuple[str, int], Any]) -> tuple[bool, int]:
    (arm, number), _ = item
    return arm != "longcot", number


def test_a_run_of_measurements_is_no_study(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", {"config": {}})
    with pytest.raises(UsageError, match="run holds no traces; expected a run of `scaling probe`"):
        frame(store)


def test_traces_of_a_newer_schema_are_refused(asked: Any, walkers: Make, tmp_path: Path) -> None:
    store = asked.asked_whole(tmp_path / "run", walkers())
    path = store.path / store.manifest["arms"][0]["file"]
    path.write_text(path.read_text().replace('"schema_version": "1.0"', '"schema_version": "2.0"', 1))
    with pytest.raises(StoreError, match=r"line 1 has schema 2\.0, newer than 1\.0; update scaling"):
        frame(store)


def test_a_study_that_has_not_begun_is_an_empty_frame_with_all_columns(
    walkers: Make, tmp_path: Path, whole: Store
) -> None:
    store = begin(tmp_path / "run", walkers())
    empty = frame(store)
    assert len(empty) == 0
    assert list(empty.dtypes.items()) == list(frame(whole).dtypes.items())


def test_several_studies_are_one_frame(asked: Any, walkers: Make, whole: Store, tmp_path: Path) -> None:
    other = asked.asked_whole(tmp_path / "other", walkers(samples=1))
    assert frame([whole, other]).groupby("run").size().to_dict() == {"whole": 16, "other": 8}


def test_an_arm_that_is_not_there_is_named(whole: Store) -> None:
    with pytest.raises(UsageError, match="unknown arm 'longcto'; did you mean longcot"):
        records(whole, "longcto")
