"""Values of states, and the advantages they give, against a tree worked by hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import UsageError
from scaling.rollout import Trace
from scaling.tasks.walk import TOKENIZER
from scaling.text import Text
from scaling.thinking import Chunk
from trainer import values
from trainer.loop import Trainer
from trainer.problems import TextQuestions
from trainer.values import State, places

Start = Callable[..., Trainer]


def chunk(text: str, *, last: bool = False) -> Chunk:
    """What a chunk says; the last one is ended by the model."""
    ended = (TOKENIZER.eos,) if last else ()
    return Chunk((0,), (*TOKENIZER.encode(text), *ended), "stop" if last else "length")


def said(state: State) -> str:
    return "|".join(TOKENIZER.decode(c.response) + ("…" if c.finish == "open" else "") for c in state.before)


TREE = [
    Trace(0, (0,), [chunk("02p,01q,"), chunk("00r#r", last=True)]),
    Trace(1, (0,), [chunk("02p#p", last=True)]),
]
REWARDS = [1.0, 0.0]
FRESH = {
    "": [1.0, 0.0, 0.0, 0.0],
    "02p,…": [1.0, 1.0, 1.0, 0.0],
    "02p,01q,": [1.0, 0.0, 1.0, 0.0],
}
"""What four rollouts from each state of the tree bring; each thinks for three tokens."""


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(_: Trainer, states: Sequence[State], **__: int) -> list[tuple[Trace, float]]:
        left = defaultdict(list, {text: list(rewards) for text, rewards in FRESH.items()})
        return [(Trace(i, (0,), [chunk("#pq")]), left[said(state)].pop(0)) for i, state in enumerate(states)]

    monkeypatch.setattr(values, "ends", ends)


VINE = ["advantage=vineppo", "value_rollouts=4", "queries=1", "group=2", "minibatches=1"]


@pytest.mark.usefixtures("tree")
def test_a_chunks_advantage_is_what_it_changed_in_the_value(start: Start) -> None:
    """V = 1/4 at the query, 1/2 where chunk 2 starts: 1/2 − 1/4, then 1 − 1/2; the other trace 0 − 1/4."""
    found, tokens = values.vineppo(start(*VINE), [5], TREE, REWARDS)
    assert found == [[0.25, 0.5], [-0.25]]
    assert tokens == 2 * 4 * 3  # of two states: the query's rollouts serve both traces


@pytest.mark.usefixtures("tree")
def test_a_steps_advantage_is_that_of_its_tokens_alone(start: Start) -> None:
    """V = 3/4 after the first step: +1/2 for its four tokens, then 1/2 − 3/4; where a chunk ends, the next starts."""
    found, tokens = values.vineppo(start(*VINE, "value_states=step"), [5], TREE, REWARDS)
    assert found == [[(0.5,) * 4 + (-0.25,) * 4, 0.5], [-0.25]]
    assert tokens == 3 * 4 * 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], [(0, 0), (1, 0)]),
        (["value_states=step"], [(0, 0), (0, 4), (0, 8), (1, 0), (1, 3), (1, 7)]),
        (["value_states=step", "steps_per_value=2"], [(0, 0), (0, 8), (1, 0), (1, 7)]),
    ],
)
def test_states_lie_where_chunks_start_and_steps_end(
    start: Start, settings: list[str], expected: list[tuple[int, int]]
) -> None:
    thought = [chunk("05p,04q,03r,"), chunk("2s,01t,00u#u", last=True)]
    assert places(start(*settings), thought) == expected


@pytest.mark.parametrize("mode", ["delethink", "longcot"])
def test_training_values_steps_inside_chunks(start: Start, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = values.vineppo

    def spy(*arguments: Any) -> Any:
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(values, "vineppo", spy)
    trainer = start(f"mode={mode}", "advantage=vineppo", "value_states=step", "value_rollouts=4", "steps=1")
    before = trainer.policy.head.detach().clone()
    trainer.train()
    ((each, tokens),) = seen
    assert tokens > 0
    assert any(isinstance(one, tuple) and len(set(one)) > 1 for trace in each for one in trace)
    assert not trainer.policy.head.equal(before)


def test_a_rollout_from_inside_a_chunk_is_judged_with_what_was_said_before(start: Start) -> None:
    """From a walk that is said but for its end, every rollout that ends itself rightly is rewarded."""
    trainer = start("mode=longcot", "queries=2", "steps=1", "temperature=0.01")
    trainer.train()
    walk = trainer.questions
    index = next(i for i in range(64) if walk._problems[i].meta["n"] == 0)  # type: ignore[attr-defined]
    problem, query = walk._problems[index], tuple(walk.query(index))  # type: ignore[attr-defined]
    begun = Chunk(query, tuple(TOKENIZER.encode(f"00{problem.answer}#{problem.answer}")), "open")
    trainer.engine = trainer.engine.__class__(trainer.policy, max_sequences=8, max_length=64, eos=walk.eos)
    found = values.ends(trainer, [State(index, (begun,))] * 4, round=7)
    assert [(trace.response_lengths, reward) for trace, reward in found] == [([1], 1.0)] * 4


def test_steps_of_a_text_end_at_blank_lines(chat_model: Path) -> None:
    text = Text(chat_model)
    questions = TextQuestions(None, [], text, ())  # type: ignore[arg-type]
    ids = text.tokenizer.encode("First.\n\nSecond\nline.\n \n\nThird", add_special_tokens=False)
    ends = questions.step_ends(ids)
    assert [text.decode(ids[:end]) for end in ends] == ["First.\n\n", "First.\n\nSecond\nline.\n \n\n"]
    assert questions.step_ends(text.tokenizer.encode("one line", add_special_tokens=False)) == []


def test_states_are_chunks_or_steps(start: Start) -> None:
    with pytest.raises(UsageError, match="did you mean step"):
        start("value_states=steps")
    with pytest.raises(UsageError, match="steps_per_value=1"):
        start("steps_per_value=0")
