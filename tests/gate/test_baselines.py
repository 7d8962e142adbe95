"""Saved baselines: one file a machine under a name, the same counters in all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import StoreError, UsageError
from scaling.gate.baselines import find, save
from scaling.gate.side import read_side


def test_a_baseline_is_one_small_file_a_fingerprint_under_its_name(tmp_path: Path, side: Any) -> None:
    path, renewed = save(side(name="20260101-tiny"), "main", tmp_path)
    assert (path, renewed) == (tmp_path / "main" / "fp0.json", [])
    assert find("main", side(), tmp_path) == side(name="main")
    assert [entry.name for entry in path.parent.iterdir()] == ["fp0.json"]


def test_the_same_side_is_the_same_text(tmp_path: Path, side: Any) -> None:
    path, _ = save(side(name="monday"), "main", tmp_path)
    before = path.read_text()
    assert save(side(name="tuesday"), "main", tmp_path)[0].read_text() == before
    assert before.endswith("}\n")
    assert '\n    "chunks": 12,\n' in before  # a line a counter: a change of one is a change of a line


def test_a_new_baseline_takes_the_place_of_the_old_one(tmp_path: Path, side: Any, cell: Any) -> None:
    save(side(), "main", tmp_path)
    changed = side(cell(counters={"chunks": 13}), name="main")
    save(changed, "main", tmp_path)
    assert find("main", side(), tmp_path) == changed


def test_another_machines_baseline_serves_where_there_is_none_of_ones_own(tmp_path: Path, side: Any) -> None:
    save(side(fingerprint_id="fp1"), "main", tmp_path)
    assert find("main", side(), tmp_path).fingerprint_id == "fp1"
    save(side(), "main", tmp_path)
    assert find("main", side(), tmp_path).fingerprint_id == "fp0"


def test_of_several_other_machines_the_one_that_measured_the_same_serves(tmp_path: Path, side: Any) -> None:
    save(side(fingerprint_id="a", config={"model": "large"}), "main", tmp_path)
    save(side(fingerprint_id="b", config={"model": "tiny"}), "main", tmp_path)
    assert find("main", side(config={"model": "tiny"}), tmp_path).fingerprint_id == "b"


def test_new_counters_reach_other_machines_baselines_and_leave_their_other_cells_alone(
    tmp_path: Path, side: Any, cell: Any
) -> None:
    there = (cell(seconds=(7.0,) * 3), cell(key="bb", seconds=(8.0,) * 3), cell(key="gone"))
    path, _ = save(side(*there, fingerprint_id="fp1"), "main", tmp_path)
    _, renewed = save(side(cell(counters={"chunks": 13}), cell(key="bb")), "main", tmp_path)
    assert renewed == [path]
    changed, kept = read_side(path).measured.values()
    assert (changed.counters["chunks"], changed.seconds, changed.memory_bytes) == (13, (), None)
    assert (kept.key, kept.seconds) == ("bb", (8.0,) * 3)


def test_what_failed_on_one_machine_takes_no_counters_from_another(tmp_path: Path, side: Any, cell: Any) -> None:
    path, _ = save(side(fingerprint_id="large"), "main", tmp_path)
    before = path.read_text()
    failed = cell(status="oom", reason="1 of 1 repeats: no memory", counters={"chunks": None})
    assert save(side(failed, fingerprint_id="small"), "main", tmp_path)[1] == []
    assert path.read_text() == before


def test_other_machines_that_measured_other_things_are_left_alone(tmp_path: Path, side: Any, cell: Any) -> None:
    path, _ = save(side(fingerprint_id="gpu", config={"device": "H100"}), "main", tmp_path)
    before = path.read_text()
    assert save(side(cell(counters={"chunks": 13}), config={"device": "cpu"}), "main", tmp_path)[1] == []
    assert path.read_text() == before


def test_no_baseline_yet_says_the_command_that_saves_one(tmp_path: Path, side: Any) -> None:
    with pytest.raises(StoreError) as error:
        find("main", side(), tmp_path)
    command = f"`scaling check RUN --save main --directory {tmp_path}`"
    assert str(error.value) == f"no baseline 'main' in {tmp_path} yet; save one with {command}"
    with pytest.raises(StoreError, match=r"save one with `scaling check RUN --save no-such-name`"):
        find("no-such-name", side())


def test_a_baseline_of_a_newer_schema_is_refused_and_stays(tmp_path: Path, side: Any) -> None:
    path, _ = save(side(fingerprint_id="fp1"), "main", tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": "2.0"}))
    before = path.read_text()
    for use in (find, lambda name, one, where: save(one, name, where)):
        with pytest.raises(StoreError, match=r"schema 2\.0, newer than"):
            use("main", side(), tmp_path)
    assert path.read_text() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["fp1.json"]


@pytest.mark.parametrize("name", ["", "../main", "release/1", ".hidden", "a b"])
def test_a_name_that_cannot_name_a_directory_is_refused(tmp_path: Path, side: Any, name: str) -> None:
    for use in (find, lambda name, one, where: save(one, name, where)):
        with pytest.raises(UsageError, match="cannot name a baseline"):
            use(name, side(), tmp_path)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, side: Any) -> None:
    (tmp_path / "main").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        save(side(), "main", tmp_path)
