"""`scaling values`: one command from a training run to the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

FAST = ["task=walk:0-3", "problems=16", "queries=2", "group=4", "warm_steps=20", "warm_examples=8", "replay=0"]
SMALL = ["--states", 2, "--candidates", 2, "--rollouts", 4, "--groups", 3, "--estimates", "3,1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scaling.cli import main

    path = tmp_path_factory.mktemp("training") / "run"
    assert main(["train", "walk-delethink-cpu", *FAST, "steps=1", "--out", str(path)]) == 0
    return path


def test_a_run_is_judged_in_words_and_as_json(cli: Any, run: Path) -> None:
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    ran = cli("values", run, *SMALL)
    assert ran.code == 0, ran.err
    assert "values at step 1" in ran.err
    assert ran.err.endswith("groups 3/3\n")
    told_in_words = [line.split()[0] for line in ran.out.splitlines()[1:]]
    assert told_in_words == ["rollouts", "1", "3", "advantage", "grpo", "rloo", "vineppo", "vineppo"]
    told = json.loads(cli("values", run, "value_states=step", *SMALL, "--json").out)
    assert told["recipe"]["value_states"] == "step"
    assert told["step"] == 1
    assert told["diagnosis"]["estimates"] == [1, 3]
    assert [row["advantage"] for row in told["gradients"]] == ["grpo", "rloo", "vineppo", "vineppo"]
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "no run at nowhere"),
        (("nowhere", "--estimates", "few"), "as in 1,3,9"),
        (("nowhere", "--estimates", "0"), "as in 1,3,9"),
        (("nowhere", "--states", "1"), "give at least 2"),
    ],
)
def test_bad_input_is_one_line(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("values", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_a_checkpoint_of_a_run_may_be_given(cli: Any, run: Path) -> None:
    ran = cli("values", run / "checkpoints" / "step-000000", *SMALL, "--json")
    assert json.loads(ran.out)["step"] == 0
    gone = cli("values", run / "checkpoints" / "step-000009", *SMALL)
    assert (gone.code, gone.err.count("\n")) == (2, 1)
    assert "step-000009" in gone.err


def test_an_unknown_key_is_named(cli: Any, run: Path) -> None:
    ran = cli("values", run, "value_state=step")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean value_states" in ran.err
