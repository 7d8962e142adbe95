"""Checkpoints: everything loads them, a run goes on from them bit for bit, and a kill leaves the last whole one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scaling.decoder import Decoder
from scaling.errors import CheckpointError, StoreError, UsageError
from scaling.models import end_tokens
from scaling.results import Store
from scaling.tasks.walk import CONFIG
from trainer import metrics
from trainer.checkpoint import checkpoints, newest, restore
from trainer.loop import Trainer
from trainer.metrics import read
from trainer.recipe import Recipe

Start = Callable[..., Trainer]


def test_ten_steps_are_five_and_five_more_bit_for_bit(start: Start, tmp_path: Path) -> None:
    fast = ["queries=2", "group=8", "save_every=5"]
    whole = start("steps=10", *fast, out=tmp_path / "whole")
    whole.train()
    half = start("steps=5", *fast, out=tmp_path / "half")
    half.train()
    again = Trainer.resume(tmp_path / "half", ["steps=10"])
    again.train()
    left, right = (newest(tmp_path / name) for name in ("whole", "half"))
    assert left.name == right.name == "step-000010"
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        one, other = load_file(left / file), load_file(right / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert any("exp_avg" in name for name in one)  # some update was made
    told = [
        [{k: v for k, v in line.items() if "second" not in k} for line in read(tmp_path / n)] for n in ("whole", "half")
    ]
    assert told[0] == told[1]


def untimed(run: Path) -> list[dict[str, object]]:
    return [{name: value for name, value in line.items() if "second" not in name} for line in read(run)]


def test_transformers_loads_model_and_tokenizer(start: Start) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trainer = start("steps=1")
    saved = trainer.train()
    ids = trainer.questions.query(0)
    theirs = AutoModelForCausalLM.from_pretrained(saved)
    with torch.no_grad():
        ours = trainer.policy.logits(trainer.policy.hidden(torch.tensor(ids), [len(ids)]))
        assert torch.allclose(theirs(torch.tensor([ids])).logits[0], ours, atol=1e-5)
    walk = trainer.questions.walk  # type: ignore[attr-defined]
    assert AutoTokenizer.from_pretrained(saved)(walk.problems(1)[0].question)["input_ids"] == ids
    assert theirs.generation_config.eos_token_id in (1, [1])
    assert end_tokens(saved) == (1,)


def test_only_the_newest_are_kept(start: Start) -> None:
    trainer = start("steps=4", "queries=2", "keep_checkpoints=2")
    trainer.train()
    assert [path.name for path in checkpoints(trainer.run)] == ["step-000003", "step-000004"]


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import trainer.checkpoint as checkpoint
from trainer.loop import Trainer

def die(pending, path):
    if path.name == "step-000002":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(pending, path)

publish, checkpoint.publish = checkpoint.publish, die
Trainer.resume(Path(sys.argv[1])).train()
"""


def test_a_kill_in_mid_checkpoint_leaves_the_last_whole_one(start: Start) -> None:
    trainer = start("steps=2", "queries=2")
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(trainer.run)], check=False, capture_output=True, env=os.environ
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    folder = trainer.run / "checkpoints"
    assert [path for path in folder.iterdir() if path.name.startswith(".step-000002")]  # it had begun
    assert newest(trainer.run).name == "step-000001"
    again = Trainer.resume(trainer.run)
    assert again.train().name == "step-000002"
    assert [line["step"] for line in read(trainer.run)] == [1, 2]


def test_a_checkpoint_of_another_architecture_is_refused(start: Start) -> None:
    trainer = start("steps=1")
    trainer.train()
    config = {**trainer.policy.config, "intermediate_size": 96}
    Decoder.from_config(config).save(newest(trainer.run))
    with pytest.raises(CheckpointError, match=r"another architecture: its .* fits no parameter"):
        Trainer.resume(trainer.run)


def test_a_recipes_model_of_an_architecture_that_cannot_be_trained_is_refused(start: Start, tmp_path: Path) -> None:
    model = tmp_path / "model"
    Decoder.from_config(CONFIG).save(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gemma"}))
    with pytest.raises((CheckpointError, UsageError), match="gemma"):
        start(f"model={model}")
    assert not (tmp_path / "run").exists()


def test_the_optimizer_goes_on_where_the_parameters_are(start: Start) -> None:
    trainer = start("steps=1")
    saved = trainer.train()
    elsewhere = Decoder.from_config(trainer.policy.config).to("meta")
    optimizer = torch.optim.AdamW(elsewhere.parameters())
    restore(saved, elsewhere, optimizer)
    devices = {value.device.type for state in optimizer.state.values() for value in state.values()}
    assert devices == {"meta"}


def test_what_is_no_run_of_ours_is_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run at"):
        Trainer.resume(tmp_path / "nothing")
    trainer = start("replay=0")
    with pytest.raises(StoreError, match="not empty"):
        start("replay=0")
    for path in checkpoints(trainer.run):
        (path / "trainer" / "optimizer.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="damaged"):
        Trainer.resume(trainer.run)


def test_a_disk_that_is_full_stops_the_run_and_keeps_what_was_saved(start: Start) -> None:
    """A limit on the size of files is the same to a writer: the next checkpoint is too large for it."""
    trainer = start("steps=1", "queries=2")
    script = """
import resource, sys
from pathlib import Path
from scaling.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.exit(main(["train", "--resume", sys.argv[1]]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", script, str(trainer.run)], check=False, capture_output=True, text=True, env=os.environ
    )
    assert ran.returncode == 2, ran.stderr
    assert "earlier checkpoints are whole" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [path.name for path in checkpoints(trainer.run)] == ["step-000000"]
    assert Trainer.resume(trainer.run).train().name == "step-000001"


def test_a_run_goes_on_with_the_problems_that_it_began_with(start: Start) -> None:
    trainer = start("replay=0")
    with pytest.raises(UsageError, match=r"begun with other problems than 'walk:0-3'.*model=.*step-000000"):
        Trainer.resume(trainer.run, ["task=walk:0-3"])


@pytest.mark.parametrize("line", ["{no json}", "[]", '{"step": "x"}'])
def test_a_damaged_line_of_metrics_is_named(start: Start, line: str) -> None:
    trainer = start("steps=1", "queries=2")
    trainer.train()
    with (trainer.run / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(StoreError, match=r"metrics.jsonl, line 2 is damaged"):
        Trainer.resume(trainer.run, ["steps=2"]).train()


def test_metrics_that_cannot_be_written_are_said_in_one_line(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start("steps=1", "queries=2")

    def refuse(_: Path, **__: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(metrics, "appearing", refuse)
    with pytest.raises(StoreError, match=r"cannot write .*metrics.jsonl: Permission denied; checkpoints are whole"):
        trainer.train()


def test_steps_that_are_made_again_leave_one_row_a_phase(start: Start) -> None:
    trainer = start("steps=3", "queries=2", "replay=0")
    shutil.rmtree(trainer.train())  # as if killed before its last checkpoint was whole
    Trainer.resume(trainer.run, ["temperature=0.5"]).train()  # so that the third step's rows are others
    rows = Store.open(trainer.run).frame()
    assert sorted(zip(rows["repeat"], rows["phase"], strict=True)) == [
        (step, phase) for step in (1, 2, 3) for phase in ("logprob", "rollout", "sync", "update")
    ]
    third = rows[(rows["repeat"] == 3) & (rows["phase"] == "rollout")].iloc[0]
    assert third["wall_seconds"] == read(trainer.run)[2]["rollout_seconds"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("model=walk", "model decides how a run begins"),
        ("warm_steps=5", "warm_steps decides how a run begins"),
        ("kl=0.1", "kept no reference to compare with"),
    ],
)
def test_what_only_a_beginning_can_heed_is_refused_later(start: Start, change: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Trainer.resume(start().run, [change])


def test_tensorboards_events_are_all_written_when_a_run_ends(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Board:
        def add_scalar(self, name: str, _: float, step: int) -> None:
            told.append(f"{name} {step}")

        def close(self) -> None:
            told.append("closed")

    monkeypatch.setattr(metrics, "_tensorboard", lambda *_: Board())
    start("steps=1", "queries=2").train()
    assert told[0] == "step 1"
    assert told[-1] == "closed"


def test_what_a_resumed_run_changed_is_kept(start: Start) -> None:
    trainer = start("steps=1", "queries=2", "replay=0")
    trainer.train()
    Trainer.resume(trainer.run, ["steps=2", "learning_rate=1e-5"]).train()
    again = Trainer.resume(trainer.run)
    assert (again.recipe.steps, again.recipe.learning_rate) == (2, 1e-5)
    assert Store.open(trainer.run).manifest["recipe"]["steps"] == 1  # how it began


def test_a_warm_start_that_is_interrupted_leaves_nothing_in_the_way(small: Recipe, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    fresh = small.override(["model=walk", "warm_steps=3", "warm_examples=4"])
    with pytest.raises(KeyboardInterrupt):
        Trainer.start(fresh, tmp_path / "run", interrupt)
    Trainer.start(fresh, tmp_path / "run").close()
    assert newest(tmp_path / "run").name == "step-000000"


def test_a_budget_beyond_the_models_positions_is_refused(start: Start, chat_model: Path, tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"question": "1 + 1?", "answer": "2"}) + "\n")
    words = [f"model={chat_model}", f"task=jsonl:{problems}", "replay=0", "mode=longcot", "thinking_budget=600"]
    with pytest.raises(UsageError, match="positions end at 512; shorten the budget"):
        start(*words)
    assert not (tmp_path / "run").exists()
