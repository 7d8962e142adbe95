"""The grammar of token counts and thinking lengths."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import UsageError
from scaling.lengths import MAX_POINTS, MAX_TOKENS, format_tokens, parse_lengths, parse_tokens

tokens = st.integers(1, MAX_TOKENS)
ranges = st.tuples(tokens, tokens).map(sorted)


def shown(text: str) -> str:
    return " ".join(format_tokens(n) for n in parse_lengths(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("1500", 1500), ("8k", 8192), ("8K", 8192), ("1.5k", 1536), ("1m", 1_048_576), (" 2k ", 2048)],
)
def test_a_count_is_plain_or_in_units_of_1024(text: str, expected: int) -> None:
    assert parse_tokens(text) == expected


@pytest.mark.parametrize(
    ("n", "expected"), [(0, "0"), (768, "768"), (1500, "1500"), (1536, "1.5k"), (8192, "8k"), (1_048_576, "1m")]
)
def test_a_count_is_shown_as_short_as_it_can_be_read_back(n: int, expected: str) -> None:
    assert format_tokens(n) == expected


@given(st.integers(0, MAX_TOKENS))
def test_what_is_shown_reads_back(n: int) -> None:
    assert parse_tokens(format_tokens(n)) == n


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8k", "8k"),
        ("8k,4k, 8k", "4k 8k"),
        ("8k..96k", "8k 12k 16k 24k 32k 48k 64k 96k"),
        ("8k..100k", "8k 12k 16k 24k 32k 48k 64k 96k 100k"),
        ("5k..9k", "5k 6k 8k 9k"),
        ("8k..8k", "8k"),
        ("8k..40k:8k", "8k 16k 24k 32k 40k"),
        ("8k..96k:32k", "8k 40k 72k 96k"),
        ("8k..96k/6", "8k 13k 22k 36k 58k 96k"),
        ("1k..8k/4", "1k 2k 4k 8k"),
        ("1..2/256", "1 2"),
        ("1..65/2", "1 65"),
        ("1k..4k:1k,8k..16k", "1k 2k 3k 4k 8k 12k 16k"),
    ],
)
def test_lists_ladders_steps_and_geometric_points(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(ranges)
def test_a_ladder_has_both_ends_and_between_them_only_its_rungs_each_at_most_half_again_the_last(
    bounds: list[int],
) -> None:
    start, end = bounds
    lengths = parse_lengths(f"{start}..{end}")
    assert (lengths[0], lengths[-1]) == (start, end)
    assert all(bin(n).strip("0b") in ("1", "11") for n in lengths[1:-1])
    assert all(2 * high <= 3 * low or (low, high) == (1, 2) for low, high in pairwise(lengths))


@given(ranges, st.integers(2, MAX_POINTS))
def test_geometric_points_have_both_ends_and_lie_within_a_sixteenth_of_their_exact_place(
    bounds: list[int], points: int
) -> None:
    start, end = bounds
    lengths = parse_lengths(f"{start}..{end}/{points}")
    exact = [start * (end / start) ** (i / (points - 1)) for i in range(points)]
    assert (lengths[0], lengths[-1]) == (start, end)
    assert len(lengths) <= points
    assert all(any(abs(n - x) <= max(x / 16, 0.5) + 1e-6 * x for x in exact) for n in lengths)
    assert all(n % 1024 == 0 for n in lengths[1:-1] if n > 8192)


@given(tokens, st.integers(1, 200), st.integers(1, 100_000))
def test_steps_start_at_a_and_hold_b(start: int, count: int, step: int) -> None:
    end = min(start + count * step, MAX_TOKENS)
    lengths = parse_lengths(f"{start}..{end}:{step}")
    assert (lengths[0], lengths[-1]) == (start, end)
    assert all((n - start) % step == 0 for n in lengths[:-1])


@given(st.lists(tokens, min_size=1, max_size=20))
def test_any_list_comes_out_sorted_and_unique(values: list[int]) -> None:
    assert parse_lengths(",".join(map(str, values))) == sorted(set(values))


@given(st.text(alphabet="0123456789.kKmM:/,- x", max_size=20))
def test_whatever_is_typed_gives_positive_sorted_lengths_or_a_usage_error(text: str) -> None:
    try:
        lengths = parse_lengths(text)
    except UsageError:
        return
    assert lengths == sorted(set(lengths))
    assert lengths[0] > 0
    assert len(lengths) <= MAX_POINTS


@pytest.mark.parametrize(
    ("text", "part", "reason"),
    [
        ("", "''", "a number of tokens is missing"),
        ("8k,,16k", "''", "a number of tokens is missing"),
        ("8k,nonsense", "'nonsense'", "no number of tokens"),
        ("8k..", "'8k..'", "missing"),
        ("8k..16k..32k", "'8k..16k..32k'", "no number of tokens"),
        ("1k,8k..4k", "'8k..4k'", "4k is less than 8k"),
        ("0", "'0'", "not positive"),
        ("-8k", "'-8k'", "no number of tokens"),
        ("1.3k", "'1.3k'", "1331.2 tokens"),
        ("2000m", "'2000m'", "more than 1024m"),
        ("9" * 5000, "'9999", "no number of tokens"),
        ("8k..96k:0", "'8k..96k:0'", "not positive"),
        ("8k..96k:1", "'8k..96k:1'", "more than 256"),
        ("8k..96k/1", "'8k..96k/1'", "from 2 to 256"),
        ("8k..96k/many", "'8k..96k/many'", "from 2 to 256"),
        ("8k..96k:8k/3", "'8k..96k:8k/3'", "no number of tokens"),
    ],
)
def test_an_error_names_the_bad_part_and_shows_an_example(text: str, part: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_lengths(text)
    assert str(caught.value).startswith(f"bad lengths {part}")
    assert reason in str(caught.value)
    assert "8k..96k/6" in str(caught.value)


def test_too_many_parts_are_refused_together() -> None:
    with pytest.raises(UsageError, match="300 lengths are more than 256"):
        parse_lengths(",".join(map(str, range(1, 301))))


@pytest.mark.parametrize("text", ["", "8q", "1.3k", "-1"])
def test_a_bad_count_shows_what_one_looks_like(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected a number of tokens like 1500, 8k"):
        parse_tokens(text)
