"""The store: what is finished stays, once, whole, whatever happens to the writer."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scaling.errors import StoreError
from scaling.results import Row, Store
from scaling.results.store import ABANDONED_SECONDS

MakeRow = Callable[..., Row]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "run", {"name": "test"})


def rewrite(part: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.ParquetFile(part).read()), part)


def with_version(version: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(0, "schema_version", pa.array([version]))


# rows


def test_rows_come_back_with_their_values_in_the_columns_of_row(store: Store, make_row: MakeRow) -> None:
    rows = [make_row(), make_row(repeat=1, wall_seconds=3.0)]
    for row in rows:
        assert store.append(row)
    frame = store.frame()
    assert list(frame.columns) == [field.name for field in fields(Row)]
    assert frame.astype(object).where(frame.notna(), None).to_dict("records") == [asdict(row) for row in rows]


def test_rows_of_later_repeats_can_be_dropped_to_be_made_again(store: Store, make_row: MakeRow) -> None:
    for cell, repeat in (("aa", 1), ("aa", 2), ("bb", 3), ("bb", 10)):
        store.append(make_row(cell_id=cell, repeat=repeat))
    store.drop_after(2)
    assert store.done() == {("aa", 1), ("aa", 2)}
    assert store.append(make_row(cell_id="bb", repeat=3))


def test_a_failed_cell_has_nulls_and_the_types_hold(store: Store, make_row: MakeRow) -> None:
    store.append(make_row(status="oom", reason="needs 9 GB", chunks=None, wall_seconds=None, carryover=None))
    frame = store.frame()
    assert frame[["chunks", "wall_seconds", "carryover"]].isna().all(axis=None)
    assert frame.dtypes[["traces", "chunks", "wall_seconds", "seconds_valid"]].astype(str).to_dict() == {
        "traces": "int64",
        "chunks": "Int64",
        "wall_seconds": "float64",
        "seconds_valid": "bool",
    }
    assert pd.api.types.is_string_dtype(frame["carryover"])


def test_an_empty_run_has_no_rows_but_all_columns_with_the_same_types(store: Store, make_row: MakeRow) -> None:
    empty = store.frame()
    store.append(make_row())
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == store.frame().dtypes.to_dict()


def test_a_repeat_is_stored_once_and_never_overwritten(store: Store, make_row: MakeRow) -> None:
    assert store.append(make_row(wall_seconds=2.0))
    assert not store.append(make_row(wall_seconds=7.0))
    assert store.frame()["wall_seconds"].tolist() == [2.0]


def test_done_names_every_finished_repeat(store: Store, make_row: MakeRow) -> None:
    for cell, repeat in [("aa", 0), ("aa", 12), ("bb", 0)]:
        store.append(make_row(cell_id=cell, repeat=repeat))
    assert Store.open(store.path).done() == {("aa", 0), ("aa", 12), ("bb", 0)}


@pytest.mark.parametrize("change", [{"traces": "four"}, {"traces": None}, {"cell_id": "../escape"}])
def test_a_row_that_breaks_its_own_schema_is_not_stored(
    store: Store, make_row: MakeRow, change: dict[str, Any]
) -> None:
    with pytest.raises((ValueError, TypeError)):
        store.append(make_row(**change))
    assert store.done() == set()


# the directory


def test_the_manifest_comes_back_with_its_schema_version(store: Store) -> None:
    assert Store.open(store.path).manifest == {"format": "scaling-run", "schema_version": "1.0", "name": "test"}


def test_a_manifest_that_is_passed_on_to_a_new_run_gets_the_version_of_its_writer(tmp_path: Path) -> None:
    assert Store.create(tmp_path / "new", {"schema_version": "0.9"}).manifest["schema_version"] == "1.0"


def test_a_run_is_not_started_where_something_is(store: Store, tmp_path: Path) -> None:
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "cat.jpg").touch()
    for path in (store.path, foreign):
        with pytest.raises(StoreError, match="is not empty"):
            Store.create(path, {})
    assert [entry.name for entry in foreign.iterdir()] == ["cat.jpg"]


def test_a_run_may_start_in_an_empty_directory(tmp_path: Path) -> None:
    assert Store.create(tmp_path, {}).done() == set()


def test_whoever_joins_a_run_gets_the_manifest_of_the_first(store: Store, tmp_path: Path) -> None:
    assert Store.create(store.path, {"name": "second"}, join=True).manifest == store.manifest
    assert Store.create(tmp_path / "new", {"name": "first"}, join=True).manifest["name"] == "first"


def test_what_is_no_run_cannot_be_joined(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(StoreError, match="not empty"):
        Store.create(tmp_path, {}, join=True)


def test_a_run_cannot_start_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"cannot write .*file/run: Not a directory"):
        Store.create(tmp_path / "file" / "run", {})


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "is not a run: it has no manifest.json"),
        ("{", "manifest.json is damaged"),
        ("[]", "manifest.json is damaged: expected a JSON object"),
        ("\xff", "manifest.json is damaged"),
        ('{"manifest_version": 3}', "was written by something else"),
        ('{"format": "scaling-run"}', "has no schema version"),
        (
            '{"format": "scaling-run", "schema_version": "2.0"}',
            r"has schema 2.0, newer than the 1.x that is understood",
        ),
    ],
)
def test_what_is_not_a_run_of_ours_is_refused_with_the_reason(
    tmp_path: Path, manifest: str | None, reason: str
) -> None:
    if manifest is not None:
        (tmp_path / "manifest.json").write_text(manifest, encoding="latin-1")
    with pytest.raises(StoreError, match=reason) as caught:
        Store.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_run_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run at"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file; a run is a directory"):
        Store.open(tmp_path / "file")


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[None]:
    """This process may not look into `tmp_path`."""
    root = os.geteuid() == 0
    tmp_path.chmod(0)
    if root:
        os.seteuid(65534)
    yield
    if root:
        os.seteuid(0)
    tmp_path.chmod(0o700)


@pytest.mark.usefixtures("store", "stranger")
def test_a_run_that_may_not_be_read_or_written_is_refused(store: Store, make_row: MakeRow) -> None:
    with pytest.raises(StoreError, match=r"^cannot read .*/run: Permission denied$"):
        Store.open(store.path)
    with pytest.raises(StoreError, match=r"^cannot read .*/run: Permission denied$"):
        store.frame()
    with pytest.raises(StoreError, match=r"^cannot write .*\.parquet: Permission denied$"):
        store.append(make_row())
    with pytest.raises(StoreError, match=r"^cannot write .*/new: Permission denied$"):
        Store.create(store.path.with_name("new"), {})


def test_a_manifest_of_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "scaling-run", "schema_version": "1.9", "news": true}')
    assert Store.open(tmp_path).manifest["news"] is True


# parts


@pytest.mark.parametrize("keep", [0, 3, 4, 0.5, 0.99])
def test_a_truncated_part_is_named_and_refused(store: Store, make_row: MakeRow, keep: float) -> None:
    store.append(make_row())
    part = store.path / "0123abcd-0.parquet"
    content = part.read_bytes()
    part.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(StoreError, match=r"0123abcd-0\.parquet is damaged \(.*\); remove it and resume") as caught:
        store.frame()
    assert "\n" not in str(caught.value)


def test_a_part_with_flipped_bits_is_refused_and_never_read_as_another_number(store: Store, make_row: MakeRow) -> None:
    store.append(make_row(wall_seconds=2.5))
    whole = store.frame()
    part = store.path / "0123abcd-0.parquet"
    content = part.read_bytes()
    where = content.index(bytes(pa.array([2.5]).buffers()[1])[:8])
    part.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])
    with pytest.raises(StoreError, match="is damaged"):
        store.frame()
    part.write_bytes(content)
    pd.testing.assert_frame_equal(store.frame(), whole)


def test_a_part_under_another_name_is_refused(store: Store, make_row: MakeRow) -> None:
    store.append(make_row())
    shutil.copy(store.path / "0123abcd-0.parquet", store.path / "0123abcd-1.parquet")
    with pytest.raises(StoreError, match=r"0123abcd-1\.parquet is damaged \(the row inside is not the one"):
        store.frame()


def test_a_part_of_a_newer_minor_may_have_columns_we_do_not_know(store: Store, make_row: MakeRow) -> None:
    store.append(make_row())
    rewrite(
        store.path / "0123abcd-0.parquet",
        lambda table: with_version("1.3")(table).append_column("humidity", pa.array([0.4])),
    )
    frame = store.frame()
    assert "humidity" not in frame
    assert frame["schema_version"].tolist() == ["1.3"]


def test_a_part_of_an_older_minor_may_lack_a_nullable_column_but_no_other(store: Store, make_row: MakeRow) -> None:
    store.append(make_row())
    part = store.path / "0123abcd-0.parquet"
    rewrite(part, lambda table: table.drop_columns(["tokens_per_second"]))
    assert store.frame()["tokens_per_second"].isna().all()
    rewrite(part, lambda table: table.drop_columns(["traces"]))
    with pytest.raises(StoreError, match=r"is damaged \(no traces\)"):
        store.frame()


def test_a_part_of_a_newer_major_is_refused(store: Store, make_row: MakeRow) -> None:
    store.append(make_row())
    rewrite(store.path / "0123abcd-0.parquet", with_version("2.0"))
    with pytest.raises(StoreError, match=r"0123abcd-0\.parquet has schema 2\.0, newer than"):
        store.frame()


# grids


def test_a_grid_comes_back_and_a_newer_one_replaces_it(store: Store) -> None:
    store.save_grid("g1", {"points": [[1, 0.5]]})
    store.save_grid("g1", {"points": [[1, 0.5], [2, 0.7]]})
    assert Store.open(store.path).grid("g1") == {"schema_version": "1.0", "points": [[1, 0.5], [2, 0.7]]}


def test_a_grid_that_is_missing_damaged_or_newer_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="no grid 'g1'"):
        store.grid("g1")
    store.save_grid("g1", {})
    for content, reason in [("{", "damaged"), ('{"schema_version": "2.1"}', "newer")]:
        (store.path / "grids" / "g1.json").write_text(content)
        with pytest.raises(StoreError, match=f"g1.json .*{reason}"):
            store.grid("g1")


# what can go wrong while writing


def test_what_a_killed_writer_left_is_ignored_and_swept_when_old(store: Store, make_row: MakeRow) -> None:
    old, fresh = (store.path / f".0123abcd-{n}.parquet.1-{n}.tmp" for n in (0, 1))
    for path in (old, fresh):
        path.write_bytes(b"PAR1")
    os.utime(old, (time.time() - ABANDONED_SECONDS - 1,) * 2)
    assert store.done() == set()
    assert len(store.frame()) == 0
    assert store.append(make_row())
    assert not old.exists()
    assert fresh.exists()


def test_rows_are_stored_where_the_file_system_has_no_hard_links(
    store: Store, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert store.append(make_row(wall_seconds=2.0))
    assert not Store.open(store.path).append(make_row(wall_seconds=7.0))
    assert store.frame()["wall_seconds"].tolist() == [2.0]
    assert not list(store.path.glob(".*"))


def test_a_write_that_fails_halfway_is_one_line_and_leaves_nothing(
    store: Store, tmp_path: Path, make_row: MakeRow
) -> None:
    """The kernel itself refuses: no file of this process may grow past 4 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = sorted(store.path.iterdir())
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StoreError, match=r"^cannot write .*0123abcd-0\.parquet: File too large$"):
            store.append(make_row())
        with pytest.raises(StoreError, match="File too large"):
            Store.create(tmp_path / "new", {"text": "x" * 5000})
        with pytest.raises(StoreError, match="File too large"):
            store.save_grid("g1", {"points": list(range(2000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (store.path / "grids").rmdir()  # empty
    assert sorted(store.path.iterdir()) == before
    assert list(tmp_path.iterdir()) == [store.path]


FILL_A_DISK = """
import json, os, sys
from scaling.errors import StoreError
from scaling.results import Row, Store

disk, row = sys.argv[1], json.loads(sys.argv[2])
store, stored = Store.create(disk + "/run", {}), 0
try:
    while store.append(Row(**{**row, "repeat": stored})):
        stored += 1
except StoreError as error:
    print(json.dumps({"stored": stored, "error": str(error), "files": os.listdir(store.path)}))
    assert len(Store.open(store.path).frame()) == stored
"""


def test_a_full_disk_is_one_line_and_every_finished_row_stays(tmp_path: Path, make_row: MakeRow) -> None:
    mount = f"mount -t tmpfs -o size=192k none {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("a file system of our own cannot be mounted here")
    command = [sys.executable, "-c", FILL_A_DISK, str(tmp_path), json.dumps(asdict(make_row()))]
    ran = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(ran.stdout)
    assert told["stored"] > 3
    assert told["error"].endswith("No space left on device; free some space and resume the run")
    assert sorted(told["files"]) == sorted(["manifest.json", *(f"0123abcd-{n}.parquet" for n in range(told["stored"]))])


APPEND = """
import json, sys
from scaling.results import Row, Store

store, row = Store.open(sys.argv[1]), json.loads(sys.argv[2])
done = store.done() if sys.argv[4] == "resume" else set()
for repeat in range(int(sys.argv[3])):
    if (row["cell_id"], repeat) not in done and store.append(Row(**{**row, "repeat": repeat})):
        print(repeat, flush=True)
"""


def start_appending(store: Store, row: Row, count: int, how: Literal["resume", "race"]) -> subprocess.Popen[str]:
    """A process that appends repeats 0, 1, … of the row, and prints each that it stored, after it did."""
    command = [sys.executable, "-c", APPEND, str(store.path), json.dumps(asdict(row)), str(count), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_at_random_moments_nothing_finished_is_lost_doubled_or_half_read(
    store: Store, make_row: MakeRow
) -> None:
    chance = random.Random(0)
    kept: dict[int, str] = {}  # repeat → who stored it
    for life in range(10):
        writer = f"life {life}"
        process = start_appending(store, make_row(reason=writer, model="m" * 100_000), 10_000, "resume")
        assert process.stdout is not None
        for line in process.stdout:
            kept[int(line)] = writer
            if chance.random() < 0.3:
                break
        time.sleep(chance.random() * 0.02)
        process.kill()
        kept.update((int(line), writer) for line in process.stdout.read().split())
        process.wait()
        assert {("0123abcd", repeat) for repeat in kept} <= store.done()

    frame = Store.open(store.path).frame()
    assert not frame["repeat"].duplicated().any()
    assert sorted(frame["repeat"]) == list(range(len(frame)))
    assert 0 <= len(frame) - len(kept) <= 10  # a life may end between storing a row and saying so
    stored = dict(zip(frame["repeat"], frame["reason"], strict=True))
    assert {repeat: stored[repeat] for repeat in kept} == kept


def test_two_writers_share_a_run_and_each_row_is_stored_by_one(store: Store, make_row: MakeRow) -> None:
    processes = {name: start_appending(store, make_row(reason=name), 40, "race") for name in ("first", "second")}
    claimed = {name: process.communicate()[0].split() for name, process in processes.items()}
    assert [process.returncode for process in processes.values()] == [0, 0]
    frame = store.frame()
    assert sorted(frame["repeat"]) == list(range(40))
    for name, repeats in claimed.items():
        assert sorted(frame["repeat"][frame["reason"] == name]) == sorted(map(int, repeats))
    assert not list(store.path.glob(".*"))
