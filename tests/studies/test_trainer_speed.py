"""The study of training steps: the same tokens for both trainers, every step kept, a missing trainer said so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from studies.trainer_adapters import PHASES, Work, reward
from studies.trainer_speed import check, works

ROOT = Path(__file__).parents[2]
QUICK = works(quick=True)[0]


def ran(folder: Path, **settings: str) -> tuple[dict[str, Any], str]:
    """The record and the page of a quick run."""
    out = folder / "speed.json"
    arguments = ("--quick", "--threads", "1", "--rounds", "2", "--out", out)
    done = subprocess.run(
        [sys.executable, "-m", "studies.trainer_speed", *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = out.with_suffix(".md").read_text()
    assert done.stdout.rstrip() == page.rstrip()
    return json.loads(out.read_text()), page


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """A run where TRL cannot be imported."""
    folder = tmp_path_factory.mktemp("speed")
    (folder / "trl.py").write_text("raise ImportError('no trl here')\n")
    (folder / "datasets.py").write_text("class Dataset: ...\n")
    return ran(folder, PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")


def assert_all_is_trained(record: dict[str, Any], trainer: str) -> None:
    samples = [s for s in record["samples"] if s["trainer"] == trainer]
    assert [s["round"] for s in samples] == [-1, 0, 1, 2]
    tokens = QUICK.traces * QUICK.response
    for sample in samples:
        assert (sample["generated"], sample["trained"], sample["updates"]) == (tokens, tokens, 1)
        assert sum(sample[phase] for phase in PHASES) == pytest.approx(sample["seconds"])
        assert min(sample["generation"], sample["update"], sample["rest"]) > 0


def test_every_step_of_ours_generates_and_trains_all_tokens(alone: tuple[dict[str, Any], str]) -> None:
    record, page = alone
    assert_all_is_trained(record, "ours")
    assert QUICK.label in page
    assert record["machine"]["hardware"]["cpu"] in page


def test_a_trainer_that_is_not_installed_is_a_row_that_says_so(alone: tuple[dict[str, Any], str]) -> None:
    record, page = alone
    assert record["trainers"]["trl"] == {"absent": "not installed: ImportError: no trl here"}
    assert {s["trainer"] for s in record["samples"]} == {"ours"}
    assert "| trl       | not installed: ImportError: no trl here" in page
    assert "÷" not in page.split("Seconds a step")[1]


@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed here; `nox -s trainer-speed` installs it")
def test_trl_makes_the_same_step(tmp_path: Path) -> None:
    record, page = ran(tmp_path)
    for trainer in ("ours", "trl"):
        assert_all_is_trained(record, trainer)
    assert "trl ÷ ours" in page


@pytest.mark.parametrize("wrong", [{"generated": 47}, {"trained": 0}, {"updates": 2}])
def test_a_step_of_another_size_is_no_measurement(wrong: dict[str, int]) -> None:
    sample = {"work": vars(QUICK), "trainer": "ours", "generated": 48, "trained": 48, "updates": 1}
    check([sample])
    with pytest.raises(RuntimeError, match="was to generate and train 48 tokens"):
        check([sample | wrong])


def test_questions_are_the_same_for_both_and_as_long_as_they_say() -> None:
    work = Work("tiny", 3, 4, 5, 6)
    questions = work.questions(10)
    assert questions == work.questions(10)
    assert len(set(questions)) == 30
    assert {len(question.split()) for question in questions} == {5}


def test_rewards_differ_with_the_tokens() -> None:
    rewards = {reward([first, second]) for first in range(20) for second in range(20)}
    assert len(rewards) == 400
    assert min(rewards) >= 0
    assert max(rewards) < 1


def test_nonsense_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from studies.trainer_speed import main

    with pytest.raises(SystemExit, match="2"):
        main(["--only", "nonsense"])
    assert "'nonsense'" in capsys.readouterr().err.splitlines()[-1]
