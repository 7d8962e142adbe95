"""Which cells a run has, by which method, is decided and priced before anything is measured."""

import json

import pytest

from scaling.lengths import parse_lengths
from scaling.measure.cells import Cell, RunConfig, cells_for
from scaling.measure.plan import AUTO_FULL_SECONDS, PlannedCell, plan
from scaling.predict.roofline import Machine
from scaling.predict.shape import Shape, architecture

TINY = Shape.from_config(architecture("tiny"))
SLOW = Machine(8e9, 2e10, 1e11, 4e-6)
FAST = Machine(8e13, 2e14, 1e15, 4e-10)


def config(**changes):
    given = {"model": "tiny", "lengths": tuple(parse_lengths("1k..96k")), "context_size": 1024, "state_size": 512}
    return RunConfig(**{**given, **changes})


def planned(machine=SLOW, **changes):
    return plan(config(**changes), TINY, machine, weights="random", device="cpu")


def lengths(cells, method, phase="rollout"):
    return {p.cell.thinking_tokens for p in cells if (p.cell.method, p.cell.phase) == (method, phase)}


def test_auto_samples_what_fits_the_time_and_profiles_the_whole_curve():
    cells = planned()
    full, profiled = lengths(cells, "full"), lengths(cells, "profile")
    assert profiled == set(config().lengths)
    assert full
    assert full == {n for n in profiled if n <= max(full)}
    seconds = 3 * sum(p.seconds for p in cells if p.cell.method == "full")
    assert seconds <= AUTO_FULL_SECONDS
    beyond = min(n for n in profiled if n > max(full))
    both = sum(p.seconds for p in planned(method="full") if p.cell.thinking_tokens == beyond)
    assert seconds + 3 * both > AUTO_FULL_SECONDS


def test_auto_needs_no_profile_where_everything_fits():
    assert {p.cell.method for p in planned(FAST)} == {"full"}


def test_training_phases_go_as_far_as_full_rollouts():
    cells = planned(phases=("rollout", "update", "sync"))
    assert lengths(cells, "full", "update") == lengths(cells, "full")
    assert lengths(cells, "profile", "update") == set()
    assert sum(p.cell.phase == "sync" for p in cells) == 1


def test_training_phases_alone_are_measured_everywhere():
    cells = planned(phases=("update",))
    assert lengths(cells, "full", "update") == set(config().lengths)
    assert all(p.cell.phase == "update" for p in cells)


@pytest.mark.parametrize("method", ["full", "profile"])
def test_a_method_that_is_asked_for_is_the_only_one(method):
    assert {p.cell.method for p in planned(method=method)} == {method}


def test_every_cell_has_a_price_and_profiles_are_cheaper_than_sampling():
    full, profiled = planned(method="full"), planned(method="profile")
    assert all(p.seconds > 0 for p in full + profiled)
    assert sum(p.seconds for p in profiled) < sum(p.seconds for p in full) / 20


def test_a_cell_is_its_configuration():
    def one(**changes):
        return cells_for(config(**changes), "full", (4096,), ("rollout",), weights="random", device="cpu")

    ids = {cell.id for cell in one()}
    assert ids == {cell.id for cell in one(repeats=9, seed=3)}  # a repeat is not another cell
    for changes in ({"state_size": 256}, {"prompt_tokens": 65}, {"concurrency": 3}, {"dtype": "bfloat16"}):
        assert {cell.id for cell in one(**changes)} != ids


def test_a_planned_cell_survives_the_manifest():
    for p in planned():
        again = PlannedCell.from_json({**p.cell.to_json(), "expected_seconds": p.seconds})
        assert again == p
        assert Cell.from_json(p.cell.to_json()).id == p.cell.id


def test_cells_of_the_first_environments_keep_the_ids_that_runs_have():
    """Parts of stored runs are named by them; docs/runs/agreement has these."""
    made = config(lengths=(2048,))
    cells = cells_for(made, "full", (2048,), ("rollout",), weights="random", device="cpu")
    assert [cell.id for cell in cells] == ["49276dded17bdb74", "15c89a2dd16c926b"]


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("summary", [{"summary_size": 64}, {"cue_tokens": 3}, {"context_size": 512}]),
        ("folding", [{"summary_size": 64}, {"context_size": 512}]),
        ("budget-forcing", [{"extensions": 2}, {"cue_tokens": 3}]),
    ],
)
def test_cells_of_an_environment_differ_by_all_that_decides_their_cost(mode, changes):
    def cell(**options):
        made = config(modes=(mode,), lengths=(2048,), **options)
        (only,) = cells_for(made, "full", (2048,), ("rollout",), weights="random", device="cpu")
        return only

    assert len({cell().id, *(cell(**change).id for change in changes)}) == 1 + len(changes)
    assert Cell.from_json(json.loads(json.dumps(cell().to_json()))) == cell()
    assert sum(s.decode for s in cell().segments) == 2048
