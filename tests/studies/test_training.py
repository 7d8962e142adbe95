"""The training study: every policy trained, asked in both environments, kept in its folder, told in tables."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling.decoder import Decoder
from studies.training import ITERATIONS, LENGTHS, POLICIES, Study, jeffreys, main, page, reached, shares

ROOT = Path(__file__).parents[2]
SMALL = ("task=walk:0-2", "problems=16", "context_size=8", "state_size=4", "iterations=3", "thinking_budget=16")
TINY = ("warm_steps=3", "warm_examples=4", "replay_examples=2", "queries=2", "group=2", "steps=6", "value_rollouts=2")
SETTINGS = (*SMALL, *TINY, "save_every=3")
ARGUMENTS = ("--seeds", "1", "--walks", "2", "--set", *SETTINGS)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a small study and its record; figures and tables lie in `out`."""
    folder = tmp_path_factory.mktemp("training")
    done = subprocess.run(
        [sys.executable, "-m", "studies.training", folder, *ARGUMENTS, "--json", "--out", folder / "out"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_every_policy_is_trained_to_its_end(ran: tuple[Path, dict[str, Any]]) -> None:
    _, record = ran
    assert [(run["policy"], run["seed"]) for run in record["runs"]] == [(p.name, 1) for p in POLICIES if p.mode]
    for run in record["runs"]:
        assert len(run["reward"]) == len(run["seconds"]) == 6
        assert run["seconds"] == sorted(run["seconds"])
        assert (sum(run["value_tokens"]) > 0) == (run["policy"] == "delethink-vineppo")


def test_policies_of_a_seed_start_from_the_same_weights(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ran
    model = [json.loads((folder / f"{p}-1" / "manifest.json").read_text())["recipe"]["model"] for p in _TRAINED]
    assert {Path(path).parent.parent.name for path in model} == {"warm-1"}


def test_the_long_start_goes_on_from_the_short_one(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, record = ran
    assert set(record["teaching_seconds"]) == {"warm-1", "warm-long-1"}
    short, long = (
        Decoder.load(folder / name / "checkpoints" / "step-000000").head.detach() for name in ("warm-1", "warm-long-1")
    )
    assert 0 < float((short - long).abs().max()) < 0.01  # one step of supervised learning apart


def test_both_environments_are_asked_with_the_same_budgets(ran: tuple[Path, dict[str, Any]]) -> None:
    _, record = ran
    assert {tuple(each["budgets"]) for each in record["evaluations"]} == {tuple(8 + 4 * (i - 1) for i in ITERATIONS)}
    found = shares(record, 0)
    for policy in ("warm", "delethink", "longcot", "warm-long", "delethink-long", "longcot-long"):
        for mode in ("delethink", "longcot"):
            assert [(seed, asked) for seed, _, asked in found[policy, mode, "plain"]] == [(1, 2 * len(LENGTHS))]
    for each in record["evaluations"]:
        for counts in each["right"]:
            assert counts == sorted(counts), "a longer budget holds all that a shorter one does"


def test_a_second_call_does_nothing_again(ran: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    folder, record = ran
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    main([str(folder), *ARGUMENTS, "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["runs"] == record["runs"]
    assert err == ""
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_an_interrupted_run_goes_on_from_its_last_checkpoint(ran: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shutil.copytree(ran[0], tmp_path, dirs_exist_ok=True)
    policy = next(policy for policy in POLICIES if policy.name == "longcot")
    study = Study(tmp_path, (1,), 2, SETTINGS)
    whole = study.curve(policy, 1)
    shutil.rmtree(tmp_path / "longcot-1" / "checkpoints" / "step-000006")
    study.train(policy, 1)
    again = study.curve(policy, 1)
    assert whole is not None
    assert again is not None
    assert again["reward"] == whole["reward"]
    assert len(again["seconds"]) == 6


def test_tables_and_figures_are_written(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, record = ran
    out = folder / "out"
    assert (out / "training.md").read_text().rstrip() == page(record)
    for name in ("reward-step", "reward-seconds", "in-delethink", "in-longcot"):
        assert "<svg" in (out / f"{name}.svg").read_text()


def test_the_goal_is_reached_where_five_steps_have_it_on_average() -> None:
    assert reached({"reward": [1.0, 0.5, 1.0, 1.0, 1.0, 1.0]}) == 5
    assert reached({"reward": [1.0, 1.0, 1.0, 1.0, 0.4, 0.9]}) is None


def test_jeffreys_holds_the_share_and_ends_at_none_and_all() -> None:
    low, high = jeffreys(30, 100)
    assert (round(low, 3), round(high, 3)) == (0.217, 0.395)
    assert jeffreys(0, 10)[0] == 0
    assert jeffreys(10, 10)[1] == 1


def test_an_unknown_policy_is_refused_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--only", "delethnk"])
    assert "known: warm, delethink" in capsys.readouterr().err


_TRAINED = ("delethink", "longcot", "delethink-rloo", "delethink-vineppo")
