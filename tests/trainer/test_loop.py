"""The algorithm on tiny models: what a step does, what it leaves behind, and when it stops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count as count_up
from pathlib import Path

import pytest
import torch

from scaling.cues import worded
from scaling.errors import ScalingError, UsageError
from scaling.results import Store
from scaling.thinking import Chunk
from trainer.loop import Trainer
from trainer.metrics import read
from trainer.problems import order

Start = Callable[..., Trainer]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.policy.named_parameters()}


@pytest.mark.parametrize("mode", ["delethink", "longcot"])
@pytest.mark.parametrize("advantage", ["grpo", "rloo", "vineppo"])
def test_a_step_samples_compares_and_updates(start: Start, mode: str, advantage: str) -> None:
    trainer = start(f"mode={mode}", f"advantage={advantage}", "value_rollouts=2", "steps=1")
    before = weights(trainer)
    trainer.train()
    (line,) = read(trainer.run)
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(trainer).items())
    assert 0 < line["reward"] < 1
    assert line["logprob_difference"] < 1e-4  # of engine and trainer, in float32
    assert line["clip_fraction"][0] == 0  # the first update is on the policy that sampled
    assert 1 <= len(line["clip_fraction"]) == len(line["beside_loss"]) <= 2
    assert (line["value_tokens"] > 0) == (advantage == "vineppo")


LEARNER = ["queries=8", "group=8", "replay=0", "learning_rate=5e-3", "save_every=15"]


@pytest.mark.parametrize("mode", ["delethink", "longcot"])
def test_rl_raises_the_reward_of_a_policy_that_knows_nothing(start: Start, mode: str) -> None:
    """A reward that a random policy can earn by chance: the share of commas in a trace that ends itself."""
    trainer = start("model=walk", f"mode={mode}", "steps=15", *LEARNER)
    comma = trainer.questions.walk.tokenizer.encode(",")[0]  # type: ignore[attr-defined]

    def reward(_: int, responses: Sequence[Sequence[int]]) -> float:
        ids = [id for response in responses for id in response]
        return ids.count(comma) / len(ids)

    trainer.questions.reward = reward  # type: ignore[method-assign]
    trainer.train()
    rewards = [line["reward"] for line in read(trainer.run)]
    assert sum(rewards[:3]) / 3 < 0.1
    assert sum(rewards[-3:]) / 3 > 0.3


def test_each_phase_of_each_step_is_a_row(start: Start) -> None:
    trainer = start()
    trainer.train()
    rows = Store.open(trainer.run).frame()
    assert sorted(zip(rows["repeat"], rows["phase"], strict=True)) == [
        (step, phase) for step in (1, 2) for phase in ("logprob", "rollout", "sync", "update")
    ]
    timed = rows[rows["phase"] != "sync"]
    assert (timed["status"] == "ok").all()
    assert (timed["method"] == "full").all()
    assert (timed["traces"] == 24).all()
    assert (timed[timed["phase"] == "rollout"]["flops"] > 0).all()
    learned = {line["step"]: bool(line["clip_fraction"]) for line in read(trainer.run)}
    assert set(learned.values()) == {True, False}  # a step of equal rewards alone computes nothing but rollouts
    for row in timed[timed["phase"] == "update"].to_dict("records"):
        assert (row["flops"] > 0) == (row["processed_tokens"] > 0) == learned[row["repeat"]]
    (first,) = timed[(timed["repeat"] == 1) & (timed["phase"] == "rollout")].to_dict("records")
    line = read(trainer.run)[0]
    assert first["actual_thinking_tokens"] == pytest.approx(line["thinking_tokens"])
    assert first["wall_seconds"] == line["rollout_seconds"]


def different(_: int, __: Sequence[Chunk], numbers: Iterator[int] = count_up()) -> float:  # noqa: B008 - shared
    """A reward that no two traces have."""
    return float(next(numbers))


def test_log_probabilities_are_computed_apart_only_for_what_a_later_update_needs(start: Start, tmp_path: Path) -> None:
    flops = {}
    for count in (1, 2, 4):
        trainer = start("steps=1", f"minibatches={count}", out=tmp_path / str(count))
        trainer.reward = different  # type: ignore[method-assign]
        trainer.train()
        rows = Store.open(trainer.run).frame().set_index("phase")
        flops[count] = rows.loc["logprob", "flops"] / rows.loc["rollout", "flops"]
        (line,) = read(trainer.run)
        assert line["logprob_difference"] < 1e-4
        assert line["entropy"] > 0
    assert flops[1] == 0
    assert 0 < flops[2] < flops[4] < 1


def test_a_kl_term_holds_the_policy_to_where_it_started(start: Start) -> None:
    trainer = start("kl=0.1", "steps=1", "replay=0")
    trainer.train()
    (line,) = read(trainer.run)
    first, second = line["reference_kl"]
    assert first == pytest.approx(0.0, abs=1e-6)
    assert second > 0


def test_all_equal_rewards_move_nothing_and_are_said(start: Start) -> None:
    trainer = start("iterations=1", "context_size=2", "state_size=1", "steps=1")  # no trace can come to its end
    before = weights(trainer)
    trainer.train()
    (line,) = read(trainer.run)
    assert line["equal_groups"] == line["groups"] == 4
    assert line["clip_fraction"] == []
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(trainer).items())


def test_a_trace_that_was_cut_off_earns_nothing_whatever_it_says(start: Start) -> None:
    trainer = start("replay=0")
    walk = trainer.questions
    problem = walk._problems[0]  # type: ignore[attr-defined]
    said = tuple(walk.walk.tokenizer.encode(f"#{problem.answer}")) + walk.eos  # type: ignore[attr-defined]
    assert trainer.reward(0, [Chunk((0,), said, "stop")]) == 1.0
    assert trainer.reward(0, [Chunk((0,), said, "length")]) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_the_run_and_names_the_good_checkpoint(start: Start, bad: float) -> None:
    trainer = start("steps=3")
    step = trainer.step

    def spoiled() -> dict[str, object]:
        if trainer.done.step == 1:
            with torch.no_grad():
                trainer.policy.model.norm.weight.fill_(bad)
        return step()

    trainer.step = spoiled  # type: ignore[method-assign]
    with pytest.raises(ScalingError, match=r"step 2: .*not finite.*step-000001"):
        trainer.train()
    again = Trainer.resume(trainer.run)
    assert again.done.step == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(again).values())


def test_a_step_too_long_for_numbers_stops_the_run(start: Start) -> None:
    trainer = start("learning_rate=1e30")
    with pytest.raises(ScalingError, match=r"step 1: .*rate may help.*step-000000"):
        trainer.train()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nTip"), MemoryError()])
def test_memory_that_runs_out_stops_the_run_in_one_line(
    start: Start, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = start("steps=1")

    def greedy() -> None:
        raise error

    monkeypatch.setattr(trainer, "step", greedy)
    with pytest.raises(ScalingError, match=r"step 1: memory ran out .*token_budget; good: .*step-000000") as said:
        trainer.train()
    assert "\n" not in str(said.value)


def test_a_fault_of_ours_is_not_made_a_users_error(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = start("steps=1")
    monkeypatch.setattr(trainer, "advantages", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    monkeypatch.setattr(trainer, "advantages", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        trainer.train()


def test_the_order_of_problems_visits_all_before_it_repeats_and_goes_on_anywhere() -> None:
    whole = order(5, seed=3, start=0, wanted=15)
    assert all(sorted(whole[i : i + 5]) == list(range(5)) for i in (0, 5, 10))
    assert whole[:5] != whole[5:10]
    assert order(5, seed=3, start=4, wanted=7) == whole[4:11]


def test_a_task_of_words_needs_a_model_that_reads_them(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no demonstrations"):
        start("task=gym:chain_sum")
    with pytest.raises(UsageError, match="give a checkpoint"):
        start("task=gym:chain_sum", "replay=0", "model=walk")
    with pytest.raises(UsageError, match="unknown task 'wlak'; did you mean walk"):
        start("task=wlak:1-2", "replay=0")
    with pytest.raises(UsageError, match="as in walk:16-32"):
        start("task=walk:many")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ("mode=summary", "context_size=8", "summary_size=3", "iterations=3", "cue=,"),
        ("mode=budget-forcing", "thinking_budget=36", "extensions=2", "cue=,"),
        ("mode=folding", "context_size=8", "summary_size=3", "iterations=3", "cue=,", "stop=:"),
    ],
    ids=lambda settings: settings[0],
)
@pytest.mark.parametrize("advantage", ["grpo", "vineppo"])
def test_an_environment_with_words_of_its_own_is_trained_in(
    start: Start, settings: tuple[str, ...], advantage: str
) -> None:
    trainer = start(*settings, f"advantage={advantage}", "value_rollouts=2", "steps=1")
    encode = trainer.questions.encode
    assert trainer.environment == worded(trainer.recipe.environment, encode, cue=",", stop=trainer.recipe.stop)
    trainer.reward = lambda _, chunks: sum(chunks[-1].response) % 7 / 7  # type: ignore[method-assign]
    trainer.train()
    (line,) = read(trainer.run)
    assert line["chunks"] > 1
    rows = Store.open(trainer.run).frame().set_index("phase")
    assert rows.loc["rollout", "environment"] == settings[0].removeprefix("mode=")
    assert line["logprob_difference"] < 1e-4  # of engine and trainer: kept context is what encoding it again gives


def test_words_that_the_tokenizer_lacks_are_refused_before_anything_is_written(start: Start, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is none of the walk's"):
        start("mode=summary", "context_size=40")
    assert not list(tmp_path.rglob("manifest.json"))
