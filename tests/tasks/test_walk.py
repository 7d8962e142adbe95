"""The keyed permutation walk: its problems, its verifier, its tokenizer, its demonstrations."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import pytest

from scaling.decoder import Decoder
from scaling.errors import UsageError
from scaling.predict.shape import Shape
from scaling.tasks import Problem, Task, load
from scaling.tasks.walk import CONFIG, KEYS, STATES, SUCCESSOR, Walk, WalkTokenizer, demonstrations, thought
from scaling.text import Text

tokenizer = WalkTokenizer()


@pytest.fixture
def walk() -> Walk:
    return Walk(instances=200, seed=0, low=16, high=32)


def written(problem: Problem) -> list[int]:
    """The right trace of a problem."""
    return [*tokenizer.encode(thought(problem.meta["key"], problem.meta["n"], problem.meta["s0"])), tokenizer.eos]


def test_each_key_is_a_single_cycle_through_all_states_and_no_two_keys_agree() -> None:
    for key in KEYS:
        state, seen = "p", []
        for _ in STATES:
            seen.append(state := SUCCESSOR[key][state])
        assert sorted(seen) == list(STATES)
        assert state == "p"
    assert len({tuple(SUCCESSOR[key].values()) for key in KEYS}) > 1
    assert len({tuple(sorted(SUCCESSOR[key].items())) for key in KEYS}) == len(KEYS)


def test_problems_are_the_same_however_many_are_asked_for(walk: Walk) -> None:
    task: Task = walk
    assert Walk(200, 0, 16, 32).problems(5) == task.problems(50)[:5]
    assert Walk(200, 1, 16, 32).problems(5) != task.problems(5)


def test_problems_fill_the_range_of_steps(walk: Walk) -> None:
    assert {problem.meta["n"] for problem in walk.problems(200)} == set(range(16, 33))


def test_a_problem_asks_for_the_state_after_n_steps(walk: Walk) -> None:
    for problem in walk.problems(20):
        key, n, state = problem.meta["key"], problem.meta["n"], problem.meta["s0"]
        assert problem.question == f"{key}{n:02x}{state}:"
        for _ in range(n % len(STATES)):  # a cycle of 11 states comes round every 11 steps
            state = SUCCESSOR[key][state]
        assert problem.answer == state
        assert tokenizer.decode(walk.query(problem)) == f"<bos>{problem.question}"


def test_a_thought_counts_down_and_ends_in_its_last_state() -> None:
    q, r, s = "q", SUCCESSOR["A"]["q"], SUCCESSOR["A"][SUCCESSOR["A"]["q"]]
    assert thought("A", 2, "q") == f"02{q},01{r},00{s}#{s}"
    assert thought("A", 0, "q") == "00q#q"


def test_the_right_thought_is_rewarded_and_verified(walk: Walk) -> None:
    for problem in walk.problems(20):
        assert walk.reward(problem, written(problem)) == 1.0
        assert walk.score(problem, tokenizer.decode(written(problem)[:-1])) == 1.0
        assert walk.score(problem, problem.answer) == 1.0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda ids: ids[:-1],
        lambda ids: ids[:0],
        lambda ids: [*tokenizer.encode("#"), *ids],
        lambda ids: [*ids[:-2], *tokenizer.encode("#"), *ids[-2:]],
        lambda ids: [*ids[:-2], ids[0], tokenizer.eos],
        lambda ids: [*ids[:-3], *ids[-2:]],
    ],
    ids=["truncated", "empty", "a second mark", "a mark doubled", "another answer", "no mark"],
)
def test_any_other_ending_is_worth_nothing(walk: Walk, spoil) -> None:  # type: ignore[no-untyped-def]
    problem = walk.problems(1)[0]
    assert walk.reward(problem, spoil(written(problem))) == 0.0


@pytest.mark.parametrize("answer", [None, "", "#", "##", "\x00", "\ud800", "pq", "00p,p", "9" * 9_000])
def test_any_text_at_all_can_be_judged(walk: Walk, answer: str | None) -> None:
    assert walk.score(walk.problems(1)[0], answer) == 0.0


@pytest.mark.parametrize(("low", "high"), [(-1, 3), (5, 4), (0, 256)])
def test_a_range_that_two_digits_cannot_count_is_refused(low: int, high: int) -> None:
    with pytest.raises(UsageError, match="expected 0 <= low <= high <= 255"):
        Walk(1, 0, low, high)


def test_more_problems_than_instances_are_refused() -> None:
    with pytest.raises(UsageError, match="4 problems asked of a walk with 3 instances"):
        Walk(3, 0, 1, 2).problems(4)


def test_a_foreign_character_is_named() -> None:
    with pytest.raises(UsageError, match="'%'"):
        tokenizer.encode("A%")


def test_the_saved_tokenizer_is_the_same_to_the_rest_of_the_project(walk: Walk, tmp_path: Path) -> None:
    walk.tokenizer.save(tmp_path)
    text = Text(tmp_path, rules=walk.rules)
    assert len(text.tokenizer) == tokenizer.vocabulary
    assert (text.tokenizer.bos_token_id, text.tokenizer.eos_token_id) == (tokenizer.bos, tokenizer.eos)
    for problem in walk.problems(5):
        assert text.query(problem.question) == walk.query(problem)
        assert text.decode(written(problem)) == tokenizer.decode(written(problem))
        answer = text.answer([written(problem)])
        assert answer is not None
        assert walk.score(problem, answer.text) == 1.0


def test_a_walk_by_its_spec_is_the_trainers() -> None:
    task = load("walk:low=3,high=9", seed=4)
    assert task.problems(20) == Walk(20, 4, 3, 9).problems(20)
    assert [p.meta["difficulty"] for p in task.problems(20)] == [int(p.question[1:3], 16) for p in task.problems(20)]
    assert task.problems(1)[0].id != load("walk:low=3,high=8", seed=4).problems(1)[0].id
    task.close()


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """The tokenizer as a checkpoint holds it, under the task's own rule."""
    tokenizer.save(path := tmp_path_factory.mktemp("walk"))
    return Text(path, rules=Walk.rules)


def ended(problem: Problem) -> Iterator[list[int]]:
    """Traces that the model ended: right, all but right, and any tokens at all."""
    right = written(problem)
    chance = random.Random(problem.id)
    hash, comma = tokenizer.encode("#,")
    yield right
    yield [*right[:-2], tokenizer.bos, *right[-2:]]
    yield [tokenizer.bos, *right]
    yield right[-2:]
    yield right[-1:]
    for _ in range(200):
        ids = list(right[:-1])
        for _ in range(chance.randint(0, 2)):
            ids[chance.randrange(len(ids)) if chance.random() < 0.5 else -chance.randint(1, 3)] = chance.choice(
                [hash, comma, tokenizer.bos, chance.randrange(2, tokenizer.vocabulary)]
            )
        yield [*ids, tokenizer.eos]


def test_the_verdict_on_a_checkpoints_text_is_the_trainers_reward(walk: Walk, words: Text) -> None:
    rewards = []
    for problem in walk.problems(20):
        for ids in ended(problem):
            cut = len(ids) // 2
            answer = words.answer([ids[:cut], ids[cut:]])  # of two chunks
            verdict = walk.verify(problem, answer.text if answer else None)
            assert verdict.score == walk.reward(problem, ids), tokenizer.decode(ids)
            rewards.append(verdict.score)
    assert 0.1 < sum(rewards) / len(rewards) < 0.9


def test_a_trace_cut_before_its_answer_has_none(walk: Walk, words: Text) -> None:
    (problem,) = walk.problems(1)
    right = written(problem)
    for length in range(len(right) - 2):
        answer = words.answer([right[:length]])
        assert answer is None
        assert walk.reward(problem, right[:length]) == 0.0


def test_a_question_in_words_is_refused_not_read_as_something_else(words: Text) -> None:
    with pytest.raises(UsageError, match="tokenizer cannot write 'What is 2 \\+ 3"):
        words.query("What is 2 + 3?")


def test_the_model_has_a_word_for_each_token_and_about_100k_parameters() -> None:
    decoder = Decoder.from_config(CONFIG)
    assert decoder.shape.vocabulary == tokenizer.vocabulary
    assert 90_000 < sum(parameter.numel() for parameter in decoder.parameters()) < 110_000
    assert Shape.from_config(CONFIG).max_positions >= 4 * 255 + 16


def test_demonstrations_are_the_same_from_wherever_they_are_taken_up() -> None:
    all_of_them = list(islice(demonstrations(0, 144, 24), 20))
    assert list(islice(demonstrations(0, 144, 24, start=15), 5)) == all_of_them[15:]
    assert list(islice(demonstrations(1, 144, 24), 20)) != all_of_them


def test_demonstrations_are_whole_short_walks_or_cut_at_the_context() -> None:
    some = list(islice(demonstrations(0, 144, 24), 400))
    texts = [tokenizer.decode(tokens) for tokens, _ in some]
    whole = [text for text in texts if text.endswith("<eos>")]
    cut = [text for text in texts if not text.endswith("<eos>")]
    assert 120 < len(cut) < 240
    assert {len(tokens) - 6 for (tokens, _), text in zip(some, texts, strict=True) if text in cut} == {144}
    for text in texts:  # a thought starts from its query and never in its own middle
        assert re.match(r"<bos>[A-H](..)(.):\1\2[,#]", text)
    assert sum(int(text[6:8], 16) <= 24 for text in whole) > 0.8 * len(whole)


def test_a_demonstrator_slips_at_the_given_rate_and_walks_on_from_there() -> None:
    def slips(rate: float) -> float:
        steps = wrong = 0
        for tokens, _ in islice(demonstrations(0, 144, 24, slips=rate), 200):
            text = tokenizer.decode(tokens)
            states = re.findall(r"[0-9a-f]{2}([p-z])", text[10:])
            steps += len(states) - 1
            wrong += sum(SUCCESSOR[text[5]][a] != b for a, b in pairwise(states))
        return wrong / steps

    assert slips(0.0) == 0.0
    assert 0.05 < slips(0.06) < 0.06  # one slip in eleven happens to be the right step


def test_what_is_to_be_learned_is_the_thought_and_for_the_format_not_its_states() -> None:
    for (tokens, learned), (same, form) in zip(
        islice(demonstrations(0, 144, 24), 50), islice(demonstrations(0, 144, 24, states=False), 50), strict=True
    ):
        assert tokens == same
        assert learned == [False] * 6 + [True] * (len(tokens) - 6)
        assert not {tokenizer.decode([t]) for t, yes in zip(tokens, form, strict=True) if yes} & set(STATES)
        assert sum(learned) - sum(form) == sum(tokenizer.decode([t]) in STATES for t in tokens[6:])
