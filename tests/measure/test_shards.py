"""Parts of a run: everything is somebody's, nothing is two writers', and whoever comes first begins."""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier, Thread

import pytest

from scaling.errors import StoreError, UsageError
from scaling.lengths import parse_lengths
from scaling.measure import shards as module
from scaling.measure.cells import RunConfig
from scaling.measure.plan import PlannedCell
from scaling.measure.run import configure, prepare, resume
from scaling.measure.shards import Shard, Tally, join, shares, units
from scaling.results import Store


def config(**changes) -> RunConfig:
    """Simulated, so that a whole run takes a blink."""
    given = {
        "engine": "simulated",
        "gpu": "h100",
        "model": "r1-distill-qwen-1.5b",
        "lengths": tuple(parse_lengths("1k,2k,3k,4k")),
        "context_size": 1024,
        "concurrency": 8,
        "repeats": 2,
        "phases": ("rollout", "logprob", "update", "sync"),
    }
    return configure({**given, **changes})


@pytest.fixture(scope="module")
def planned() -> list[PlannedCell]:
    return prepare(config()).planned


@pytest.mark.parametrize("count", [1, 2, 3, 8, 100])
def test_every_cell_has_exactly_one_shard(planned, count):
    ids = [p.cell.id for share in shares(planned, count) for p in share]
    assert sorted(ids) == sorted(p.cell.id for p in planned)


def test_shares_take_about_equally_long_and_do_not_depend_on_who_asks(planned):
    found = shares(planned, 3)
    seconds = [sum(p.seconds for p in share) for share in found]
    assert max(seconds) - min(seconds) <= max(p.seconds for p in planned)
    assert [Shard(i, 3)(list(reversed(planned))) for i in (1, 2, 3)] == found


def test_the_longest_unit_comes_first_and_profiled_rollouts_stay_with_their_grid():
    both = prepare(config(method="full")).planned + prepare(config(method="profile")).planned
    seconds = [sum(p.seconds for p in unit) for unit in units(both)]
    assert seconds == sorted(seconds, reverse=True)
    [profiled] = [unit for unit in units(both) if len(unit) > 1]
    assert {p.cell.id for p in profiled} == {
        p.cell.id for p in both if p.cell.method == "profile" and p.cell.phase == "rollout"
    }


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3"])
def test_what_is_no_shard_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="2/8"):
        Shard.parse(text)


def test_shards_in_any_order_make_the_run_that_one_process_makes(tmp_path):
    for index in (3, 1, 2):
        join(config(method="profile"), tmp_path / "parts", Shard(index, 3))
    join(config(method="profile"), tmp_path / "whole", lambda planned: planned)
    columns = ["cell_id", "repeat", "status", "wall_seconds", "flops", "grid_id"]
    parts, whole = (Store.open(tmp_path / name).frame()[columns] for name in ("parts", "whole"))
    assert parts.equals(whole)
    assert (parts["status"] == "ok").all()


def test_a_shard_measures_its_part_says_what_the_run_lacks_and_goes_on(tmp_path, planned):
    came = join(config(), tmp_path / "run", Shard(1, 2))
    assert came.total == 2 * len(planned)
    assert {id for id, _ in came.store.done()} == {p.cell.id for p in Shard(1, 2)(planned)}
    [*_, lost] = sorted((tmp_path / "run").glob("*.parquet"))
    kept = {part.name: part.stat().st_mtime_ns for part in (tmp_path / "run").glob("*.parquet") if part != lost}
    lost.unlink()
    join(config(), tmp_path / "run", Shard(1, 2))
    assert lost.exists()
    assert kept.items() <= {part.name: part.stat().st_mtime_ns for part in lost.parent.glob("*.parquet")}.items()
    resume(tmp_path / "run")
    assert len(came.store.done()) == came.total


def test_a_finished_part_builds_no_model(tmp_path, monkeypatch):
    join(config(), tmp_path / "run", Shard(1, 2))
    monkeypatch.setattr("scaling.measure.run._subject", lambda *_: pytest.fail("built a model for nothing"))
    assert join(config(), tmp_path / "run", Shard(1, 2)).failed == 0


def test_shards_that_begin_at_the_same_moment_agree_on_one_manifest(tmp_path, monkeypatch):
    together = Barrier(4)

    def prepare_together(given):
        prepared = prepare(given)
        together.wait()  # nobody has seen a manifest, and all are about to write one
        return prepared

    monkeypatch.setattr(module, "prepare", prepare_together)
    came: list = []

    def begin(index):
        try:
            came.append(join(config(), tmp_path / "run", Shard(index, 4)))
        except Exception as error:
            came.append(error)

    threads = [Thread(target=begin, args=(index,)) for index in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [getattr(outcome, "failed", outcome) for outcome in came] == [0] * 4
    assert len(Store.open(tmp_path / "run").done()) == came[0].total


@pytest.mark.parametrize(
    ("change", "said"), [({"seed": 9}, "seed is 0, here it is 9"), ({"concurrency": 4}, "concurrency")]
)
def test_another_configuration_cannot_join(tmp_path, change, said):
    join(config(), tmp_path / "run", Shard(1, 2))
    with pytest.raises(StoreError, match=said):
        join(config(**change), tmp_path / "run", Shard(2, 2))


def test_another_configuration_cannot_join_in_the_moment_of_beginning(tmp_path, monkeypatch):
    join(config(), tmp_path / "run", Shard(1, 2))
    monkeypatch.setattr(module, "MANIFEST", "not-yet-seen.json")
    with pytest.raises(StoreError, match="repeats is 2, here it is 3"):
        join(config(repeats=3), tmp_path / "run", Shard(2, 2))


def test_another_machine_cannot_join(tmp_path, monkeypatch):
    join(config(), tmp_path / "run", Shard(1, 2))
    monkeypatch.setattr("scaling.measure.run.fingerprint_id", lambda _: "elsewhere")
    with pytest.raises(StoreError, match="another machine"):
        join(config(), tmp_path / "run", Shard(2, 2))


def test_two_writers_of_the_same_cells_leave_each_row_with_its_own_grid(tmp_path):
    """Both measure all; a row is the first one's, and so is the grid that it names."""
    given = replace(config(method="profile"), phases=("rollout",), repeats=1)
    first, second = tmp_path / "first", tmp_path / "second"
    join(given, first, lambda planned: planned)
    join(replace(given, gpu="a100"), second, lambda planned: planned)
    ids = [set(Store.open(run).frame()["grid_id"]) for run in (first, second)]
    assert not ids[0] & ids[1]  # other seconds, another name


def test_progress_counts_what_all_writers_have_stored(tmp_path):
    store = join(config(), tmp_path / "run", Shard(1, 2)).store
    tally = Tally(store, writers=2)
    begun = tally.progress()
    assert begun.stored == len(store.done())
    assert begun.seconds_left > 0
    join(config(), tmp_path / "run", Shard(2, 2))
    ended = tally.progress()
    assert (ended.stored, ended.seconds_left) == (ended.total, 0)
