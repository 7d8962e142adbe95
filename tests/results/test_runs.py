"""Several runs read as one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling.errors import StoreError, UsageError
from scaling.results import Row, Store, load, newest_run

MakeRow = Callable[..., Row]


def test_the_newest_run_is_the_one_created_last(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run under .*; start one with `scaling run`"):
        newest_run(tmp_path)
    for name, created in [("b", 100), ("a", 200), ("c", 150)]:
        os.utime(Store.create(tmp_path / name, {}).path / "manifest.json", (created, created))
    (tmp_path / "other").mkdir()
    assert newest_run(tmp_path) == tmp_path / "a"


def test_runs_load_together_each_row_naming_its_run(tmp_path: Path, make_row: MakeRow) -> None:
    for name in ("first", "deep/first", "second"):
        Store.create(tmp_path / name, {}).append(make_row())
    first, deep, second = tmp_path / "first", tmp_path / "deep/first", tmp_path / "second"
    assert load(first)["run"].tolist() == load(Store.open(first))["run"].tolist() == ["first"]
    assert load([first, str(second), first])["run"].tolist() == ["first", "second"]
    assert load([first, deep])["run"].tolist() == [str(first), str(deep)]
    with pytest.raises(UsageError, match="no run given"):
        load([])
