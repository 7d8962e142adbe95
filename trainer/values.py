"""What a state is worth: the mean reward of fresh rollouts from it, and the advantages that such values give."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scaling.rollout import Trace
from scaling.thinking import Chunk
from trainer import advantages

if TYPE_CHECKING:
    from trainer.loop import Trainer

Each = float | tuple[float, ...]
"""The advantage of a chunk: one of all its tokens, or one a token."""

Place = tuple[int, int]
"""Where in a trace a state is: the chunk, and how many of its response tokens are said."""


@dataclass(frozen=True, slots=True)
class State:
    """Problem `index`, and what was thought of it until now: its last chunk may be `open`."""

    index: int
    before: tuple[Chunk, ...] = ()

    @property
    def place(self) -> Place:
        if self.before and self.before[-1].finish == "open":
            return len(self.before) - 1, len(self.before[-1].response)
        return len(self.before), 0

    @classmethod
    def at(cls, index: int, chunks: Sequence[Chunk], place: Place) -> State:
        chunk, said = place
        whole = tuple(chunks[:chunk])
        if not said:
            return cls(index, whole)
        return cls(index, (*whole, Chunk(chunks[chunk].prompt, chunks[chunk].response[:said], "open")))


def places(trainer: Trainer, chunks: Sequence[Chunk]) -> list[Place]:
    """The places of a trace that are valued, in order: where its chunks start, and ends of steps if the recipe says so.

    A chunk's own end is where the next one starts, or where the trace ends and nothing more is expected.
    """
    recipe = trainer.recipe
    found: list[Place] = []
    for number, chunk in enumerate(chunks):
        found.append((number, 0))
        if recipe.value_states == "step":
            ends = trainer.questions.step_ends(chunk.response)[recipe.steps_per_value - 1 :: recipe.steps_per_value]
            found += [(number, said) for said in ends if said < len(chunk.response)]
    return found


def ends(trainer: Trainer, states: Sequence[State], round: int) -> list[tuple[Trace, float]]:
    """A fresh rollout from each state, in its own new chunks, and the reward of the whole trace."""
    return trainer.sample([state.index for state in states], round, [state.before for state in states])


@dataclass(frozen=True, slots=True)
class Vine:
    """The traces of a step and the `states` on their way, each once: those of a group start from one query.

    `passed[i]`: numbers of the states that trace i passes, in order, and `places[i]` where it does.
    """

    traces: Sequence[Trace]
    states: list[State]
    passed: list[list[int]]
    places: list[list[Place]]

    @classmethod
    def of(cls, trainer: Trainer, asked: Sequence[int], traces: Sequence[Trace]) -> Vine:
        """`asked`: the problem of each group, and `traces` those of all groups in order."""
        states = [State(index) for index in asked]
        vine = cls(traces, states, [], [])
        for trace in traces:
            query = trace.index // trainer.recipe.group
            found = places(trainer, trace.chunks)
            later = [State.at(asked[query], trace.chunks, place) for place in found[1:]]
            vine.passed.append([query, *range(len(states), len(states) + len(later))])
            vine.places.append(found)
            states += later
        return vine

    def advantages(self, rewards: Sequence[float], values: Sequence[float]) -> list[list[Each]]:
        """A = V(next state) − V(state) of every token between the two; `values` are those of `states`."""
        return [
            _spread(trace.chunks, where, advantages.vineppo([values[state] for state in passed], reward))
            for trace, passed, where, reward in zip(self.traces, self.passed, self.places, rewards, strict=True)
        ]


def vineppo(
    trainer: Trainer, asked: Sequence[int], traces: Sequence[Trace], rewards: Sequence[float]
) -> tuple[list[list[Each]], int]:
    """VinePPO (2410.01679): its advantages, chunk by chunk of each trace, and the tokens that the values took."""
    vine, fresh = Vine.of(trainer, asked, traces), trainer.recipe.value_rollouts
    found = ends(trainer, [state for state in vine.states for _ in range(fresh)], round=1)
    values = [statistics.fmean(r for _, r in found[i : i + fresh]) for i in range(0, len(found), fresh)]
    return vine.advantages(rewards, values), sum(trace.thinking_tokens for trace, _ in found)


def _spread(chunks: Sequence[Chunk], where: Sequence[Place], pieces: Sequence[float]) -> list[Each]:
    """The advantages of pieces as those of chunks: one number where a chunk is one piece, else one a token."""
    each: list[Each] = []
    for number, chunk in enumerate(chunks):
        mine = [(said, piece) for (at, said), piece in zip(where, pieces, strict=True) if at == number]
        until = [said for said, _ in mine[1:]] + [len(chunk.response)]
        tokens = tuple(piece for (said, piece), end in zip(mine, until, strict=True) for _ in range(end - said))
        each.append(mine[0][1] if len(set(tokens)) <= 1 else tokens)
    return each
