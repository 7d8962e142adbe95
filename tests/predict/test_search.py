"""Crossovers and the best context and state size."""

from __future__ import annotations

import pytest

from scaling.errors import UsageError
from scaling.predict.search import best, crossover, flops_crossover, grid
from scaling.predict.shape import Shape, architecture
from scaling.thinking import Delethink, LongCoT

R1 = Shape.from_config(architecture("r1-distill-qwen-1.5b"))


def chunked(budget: int) -> Delethink:
    return Delethink.for_length(budget, 8192, 4096, head=100)


class TestFlopsCrossover:
    @pytest.mark.parametrize("convention", ["causal", "full", "verl"])
    def test_it_is_the_last_place_where_they_change(self, convention) -> None:
        found = flops_crossover(R1, convention, LongCoT, chunked, 128)

        def gap(tokens: int) -> float:
            costs = (
                R1.logprob_flops(e.schedule(128, e.expected_lengths(128, tokens)), convention)
                for e in (LongCoT(tokens), chunked(tokens))
            )
            one, other = costs
            return one - other

        assert found is not None
        assert gap(found) > 0 >= gap(found - 1)
        assert all(gap(tokens) > 0 for tokens in range(found, 8 * found, 997))

    def test_a_model_without_attention_to_speak_of_never_crosses(self) -> None:
        """With a window of 128 tokens LongCoT costs the same for every token, and Delethink encodes its state again."""
        config = architecture("mistral-7b") | {"sliding_window": 128}
        assert flops_crossover(Shape.from_config(config), "causal", LongCoT, chunked, 128) is None


class TestCrossover:
    LADDER = tuple(1000 * 2**i for i in range(8))

    def test_it_is_found_to_a_hundredth(self) -> None:
        found, searched = crossover(lambda n: 1e-4 * n**2, lambda n: 0.9 * n, self.LADDER)
        assert found == pytest.approx(9000, rel=0.01)
        assert found >= 9000
        assert searched == 128_000

    def test_none_where_they_never_or_always_differ(self) -> None:
        assert crossover(lambda n: n, lambda n: 2 * n, self.LADDER) == (None, 128_000)
        assert crossover(lambda n: 2 * n, lambda n: n, self.LADDER) == (None, 128_000)

    def test_the_search_ends_where_one_does_not_fit(self) -> None:
        def fits(n: int) -> float:
            if n > 20_000:
                raise UsageError("too long")
            return 1e-4 * n**2

        assert crossover(fits, lambda n: 0.9 * n, self.LADDER)[1] == 16_000
        with pytest.raises(UsageError, match="too long"):
            crossover(fits, lambda n: n, (64_000,))


class TestGrid:
    @pytest.fixture
    def plan_for(self, make_plan):
        return lambda size, state: make_plan("delethink", 32768, context_size=size, state_size=state)

    def test_the_least_of_it_is_the_least(self, plan_for) -> None:
        choices = grid(plan_for, (4096, 8192))
        assert len(choices) == 8
        assert best(choices).total_gpu_hours == min(choice.plan.total_gpu_hours for choice in choices)

    def test_constraints_are_kept(self, plan_for) -> None:
        choices = grid(plan_for, (2048, 4096, 8192), largest_context=5000, least_state=1024)
        assert {(c.context_size, c.state_size) for c in choices} == {
            (2048, 1024),
            (4096, 1024),
            (4096, 1536),
            (4096, 2048),
        }

    def test_constraints_that_leave_nothing_are_refused(self, plan_for) -> None:
        with pytest.raises(UsageError, match="allow a larger context or a smaller state"):
            grid(plan_for, (2048,), largest_context=100)

    def test_a_state_that_leaves_no_room_for_the_head_is_a_reason_not_a_failure(self, make_plan) -> None:
        choices = grid(
            lambda size, state: make_plan("delethink", 2048, context_size=size, state_size=state, head=600), (1024,)
        )
        assert [choice.plan is None for choice in choices] == [False, False, False, True]
        assert "head 600" in str(choices[-1].reason)
