"""`scaling train`: recipes listed, shown, trained and resumed from the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from scaling.cli import main

FAST = ["task=walk:0-3", "problems=16", "queries=2", "group=4", "warm_steps=20", "warm_examples=8", "replay=0"]


def test_the_list_names_every_recipe(cli: Any) -> None:
    ran = cli("train", "--list")
    assert ran.code == 0
    assert "walk-delethink-cpu" in ran.out
    assert "math-r1-distill-1.5b-delethink-96k" in ran.out
    listed = json.loads(cli("train", "--list", "--json").out)
    assert {"walk-longcot-cpu", "gym-smollm2-delethink"} <= {row["recipe"] for row in listed}


def test_show_tells_the_papers_setting_and_what_it_would_cost(cli: Any) -> None:
    ran = cli("train", "--show", "math-r1-distill-1.5b-delethink-24k", "--gpu", "h100-sxm", "--gpus", 8, "--json")
    told = json.loads(ran.out)
    recipe = told["recipe"]
    sizes = ("context_size", "state_size", "iterations", "queries", "group", "steps", "temperature", "clip_high")
    assert [recipe[name] for name in sizes] == [8192, 4096, 5, 128, 8, 1000, 0.6, 0.26]
    assert 10 < told["plan"]["step_seconds"] < 10_000
    assert told["plan"]["budget_tokens"] == 24576
    shown = cli("train", "--show", "math-r1-distill-1.5b-delethink-24k", "--gpu", "h100-sxm", "seed=3").out
    assert "seed=3" in shown
    assert "GPU-hours" in shown


def test_show_plans_in_the_recipes_dtype_at_the_length_that_is_given(cli: Any) -> None:
    def planned(*arguments: str) -> Any:
        shown = ("train", "--show", "math-r1-distill-1.5b-delethink-24k", "--gpu", "h100", "--gpus", "8", "--json")
        return json.loads(cli(*shown, *arguments).out)["plan"]

    third, same, half = planned(), planned("--length", "8k"), planned("--length", "12k")
    assert third["thinking_tokens"] == same["thinking_tokens"] == 8192
    assert half["thinking_tokens"] == 12288
    assert half["step_seconds"] > third["step_seconds"] == same["step_seconds"]
    assert planned("dtype=float32")["step_seconds"] > 1.5 * third["step_seconds"]
    told = cli("train", "--show", "math-r1-distill-1.5b-delethink-24k", "advantage=vineppo", "--gpu", "h100").out
    assert "a third of the budget (--length gives another), in bfloat16" in told
    assert "the rollouts of vineppo's values come on top" in told


def test_what_goes_on_from_a_checkpoint_says_in_one_line_what_to_give(cli: Any, tmp_path: Path) -> None:
    name = "math-r1-distill-1.5b-delethink-96k"
    ran = cli("train", name, "--out", tmp_path / "run")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "model=training/24k/checkpoints/step-001000" in ran.err
    assert not (tmp_path / "run").exists()
    assert "planned cost: unknown: " in cli("train", "--show", name, "--gpu", "h100").out
    assert "planned: " in cli("train", "--show", name, "model=r1-distill-qwen-1.5b", "--gpu", "h100").out


def test_show_says_why_there_is_no_plan(cli: Any) -> None:
    assert "planned cost: unknown: " in cli("train", "--show", "walk-longcot-cpu").out
    assert json.loads(cli("train", "--show", "walk-longcot-cpu", "--json").out)["plan"] is None


def test_a_run_is_trained_and_resumed(cli: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = cli("train", "walk-delethink-cpu", *FAST, "steps=1", "--out", run)
    assert ran.code == 0, ran.err
    assert ran.out.strip() == str(run / "checkpoints" / "step-000001")
    assert "warm start 20/20" in ran.err
    assert re.search(r"^ *step +reward +ended .*\n +1/1  0\.", ran.err, re.MULTILINE)
    again = cli("train", "--resume", run, "steps=2", "--json")
    assert again.code == 0, again.err
    told = json.loads(again.out)
    assert [line["step"] for line in told["steps"]] == [2]
    assert told["checkpoint"] == str(run / "checkpoints" / "step-000002")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "scaling train --list"),
        (("walk-delethnik-cpu",), "did you mean walk-delethink-cpu"),
        (("walk-delethink-cpu", "stpes=3"), "did you mean steps"),
        (("walk-delethink-cpu", "group=1"), "group 1 is too small"),
        (("walk-delethink-cpu", "--gpu", "h100"), "gpu belongs to --show"),
        (("walk-delethink-cpu", "--length", "8k"), "length belongs to --show"),
        (("walk-delethink-cpu", "dtype=float16"), "unknown dtype 'float16'"),
        (("--resume", "x", "--out", "y"), "leave --out and --show away"),
        (("--resume", "nowhere"), "no run at nowhere"),
    ],
)
def test_bad_input_is_one_line(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = cli("train", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def one_line(ran: Any) -> str:
    """The error, which is the last line; whatever came before told of steps."""
    *before, last = ran.err.splitlines()
    assert (ran.code, ran.out) == (2, "")
    assert last.startswith("scaling: error: ")
    assert not any("error" in line or "Traceback" in line for line in before)
    return str(last)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    run = tmp_path_factory.mktemp("training") / "run"
    assert main(["train", "walk-delethink-cpu", *FAST, "steps=1", "--out", str(run)]) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_directory_that_holds_a_run_is_left_alone(cli: Any, run: Path) -> None:
    before = sorted(run.rglob("*"))
    ran = cli("train", "walk-delethink-cpu", *FAST, "steps=1", "--out", run)
    assert "is not empty; give a new directory, or resume the run" in one_line(ran)
    assert ran.err.count("\n") == 1
    assert sorted(run.rglob("*")) == before


def test_a_run_that_is_done_says_how_to_go_on(cli: Any, run: Path) -> None:
    ran = cli("train", "--resume", run)
    assert ran.code == 0
    assert ran.err == f"step 1 was the last already; for more, as in: --resume {run} steps=1000\n"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("manifest.json", "manifest.json is damaged"),
        ("checkpoints/step-000001/config.json", "config.json is not JSON"),
        ("checkpoints/step-000001/model.safetensors", "not a readable safetensors file"),
        ("checkpoints/step-000001/trainer/trainer.json", "trainer.json is not JSON"),
        ("checkpoints/step-000001/trainer/optimizer.safetensors", "no trainer's checkpoint, or damaged"),
    ],
)
def test_a_run_with_half_a_file_is_not_gone_on_with(cli: Any, run: Path, file: str, said: str) -> None:
    (run / file).write_bytes((run / file).read_bytes()[:20])
    assert said in one_line(cli("train", "--resume", run, "steps=2"))


def test_a_checkpoint_of_another_architecture_is_refused(cli: Any, run: Path) -> None:
    from scaling.decoder import Decoder
    from scaling.tasks.walk import CONFIG

    Decoder.from_config({**CONFIG, "intermediate_size": 96}).save(run / "checkpoints" / "step-000001")
    optimizer = run / "checkpoints" / "step-000001" / "trainer" / "optimizer.safetensors"
    stored = {"model.layers.0.mlp.up_proj.weight/exp_avg": torch.zeros(160, 64), "rng": torch.get_rng_state()}
    save_file(stored, optimizer)
    assert "was written for another architecture" in one_line(cli("train", "--resume", run, "steps=2"))


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_good_checkpoint(cli: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    wild = ("learning_rate=1e30", "weight_decay=1", "kl=0.1")  # held to a reference, even equal rewards make an update
    said = one_line(cli("train", "walk-delethink-cpu", *FAST, "steps=2", *wild, "--out", run))
    assert "step 1: " in said
    assert "nan" in said
    assert f"good: {run / 'checkpoints' / 'step-000000'}" in said


def test_a_data_set_row_without_an_answer_is_named_and_nothing_is_written(
    cli: Any, tmp_path: Path, chat_model: Path
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "2+2?"}\n')
    run = tmp_path / "run"
    task = (f"task=math:{problems}", f"model={chat_model}")
    ran = cli("train", "math-r1-distill-1.5b-delethink-24k", *task, "--out", run)
    assert "problems.jsonl, line 2 has no answer" in one_line(ran)
    assert ran.err.count("\n") == 1
    assert not run.exists()


def test_an_interrupt_says_what_is_kept_and_how_to_go_on(cli: Any, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    assert cli("train", "walk-delethink-cpu", *FAST, "steps=1", "--out", run).code == 0
    # SIGINT from inside, in the third step, where a Ctrl-C in the middle of the work lands.
    code = (
        "import os, signal, sys\n"
        "from scaling.cli import main\n"
        "from trainer.loop import Trainer\n"
        "step = Trainer.step\n"
        "def then_interrupt(self):\n"
        "    if self.done.step == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return step(self)\n"
        "Trainer.step = then_interrupt\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "train", "--resume", str(run), "steps=9"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"NO_COLOR": "1"})
    assert ran.returncode == 130, ran.stderr
    said = " ".join(ran.stderr.split())
    assert "interrupted after step 2, step-000001 is what is kept" in said
    assert f"go on with: scaling train --resume '{run}' steps=9" in said
