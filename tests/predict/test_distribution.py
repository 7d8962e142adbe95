"""Lengths of traces: their mean is exact, their spread is the one asked for, and no file breaks the reader."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scaling.errors import UsageError
from scaling.predict.distribution import Distribution, parse

EXAMPLES = ("fixed", "lognormal:0.3", "lognormal:0.7", "lognormal:2.5", "lognormal:10")

distributions = st.one_of(
    st.sampled_from(EXAMPLES).map(parse),
    st.lists(st.integers(1, 1 << 20), min_size=1, max_size=50).map(
        lambda lengths: Distribution("lengths.txt", recorded=tuple(sorted(lengths, reverse=True)))
    ),
)


@st.composite
def means_and_budgets(draw: st.DrawFn) -> tuple[float, int]:
    budget = draw(st.integers(1, 1 << 20))
    return draw(st.floats(1, budget)), budget


def written(folder: Path, content: str | bytes) -> str:
    path = folder / "lengths.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


class TestQuantiles:
    @given(distributions, means_and_budgets(), st.integers(1, 300))
    @example(parse("lognormal:10"), (1.0, 1 << 20), 64)
    @example(parse("lognormal:0.7"), (8191.9999, 8192), 64)
    @example(parse("fixed"), (1.5, 2), 3)
    @example(Distribution("two", recorded=(10_000, 1)), (50.5, 100), 2)
    def test_they_add_up_to_the_mean_within_the_budget_longest_first(
        self, distribution: Distribution, mean_and_budget: tuple[float, int], count: int
    ) -> None:
        mean, budget = mean_and_budget
        lengths = distribution.quantiles(mean, budget, count)
        assert lengths.dtype == np.int64
        assert len(lengths) == count
        assert lengths.sum() == round(mean * count)
        assert lengths[-1] >= 1
        assert lengths[0] <= budget
        assert np.all(np.diff(lengths) <= 0)

    @pytest.mark.parametrize("text", EXAMPLES)
    def test_they_are_the_same_each_time_and_the_callers_own(self, text: str) -> None:
        first = parse(text).quantiles(9000, 24576, 64)
        kept = first.copy()
        first[:] = 0
        np.testing.assert_array_equal(parse(text).quantiles(9000, 24576, 64), kept)

    @pytest.mark.parametrize("text", EXAMPLES)
    def test_a_mean_at_the_budget_puts_every_trace_there(self, text: str) -> None:
        assert set(parse(text).quantiles(8192, 8192, 100)) == {8192}
        assert parse(text).truncated_share(8192, 8192) == 1

    def test_fixed_lengths_differ_by_rounding_alone(self) -> None:
        assert list(parse("fixed").quantiles(100.4, 200, 5)) == [101, 101, 100, 100, 100]

    @pytest.mark.parametrize("cv", [0.1, 0.3, 0.7, 1.0])
    def test_a_budget_far_away_leaves_the_coefficient_of_variation_asked_for(self, cv: float) -> None:
        lengths = parse(f"lognormal:{cv}").quantiles(10_000, 1 << 30, 4096)
        assert lengths.std() / lengths.mean() == pytest.approx(cv, rel=0.03)

    def test_lengths_below_the_budget_lie_on_one_log_normal_whose_tail_is_cut(self) -> None:
        budget, cv = 24_576, 0.7
        lengths = parse(f"lognormal:{cv}").quantiles(12_000, budget, 2000)
        cut = int((lengths == budget).sum())
        assert 0 < cut < 500
        sigma = math.sqrt(math.log(1 + cv**2))
        logs = np.log(lengths[cut + 1 :])
        random = np.log(np.random.default_rng(0).lognormal(0, sigma, 400_000))
        quantiles = np.quantile(random, 1 - (np.arange(cut + 1, 2000) + 0.5) / 2000)
        np.testing.assert_allclose(logs[20:-20] - quantiles[20:-20], logs[900] - quantiles[900], atol=0.03)
        assert lengths.mean() == 12_000  # after the cut, so the uncut log-normal's mean is larger
        assert np.exp(logs[900] - quantiles[900] + sigma**2 / 2) > 12_000

    def test_more_traces_are_cut_the_closer_the_mean_is_to_the_budget(self) -> None:
        shares = [parse("lognormal:0.7").truncated_share(mean, 24_576) for mean in (4_000, 8_600, 16_000, 24_000)]
        assert shares == sorted(shares)
        assert 0 < shares[1] < 0.05
        assert shares[3] > 0.8

    @pytest.mark.parametrize(("cv", "count"), [(0.3, 8), (0.7, 8), (0.7, 64), (0.7, 1024), (1.5, 64), (1.5, 1024)])
    def test_the_longest_is_close_to_the_longest_that_as_many_random_traces_have(self, cv: float, count: int) -> None:
        sigma = math.sqrt(math.log(1 + cv**2))
        random = np.random.default_rng(1).lognormal(-(sigma**2) / 2, sigma, (4_000, count)).max(axis=1).mean()
        longest = parse(f"lognormal:{cv}").quantiles(1e6, 1 << 30, count)[0] / 1e6
        assert longest == pytest.approx(random, rel=0.05)

    @pytest.mark.parametrize("mean", [0, -5, 24_577, math.nan, math.inf])
    def test_a_mean_outside_the_budget_is_an_error(self, mean: float) -> None:
        with pytest.raises(UsageError, match="expected 1 to the budget of 24576"):
            parse("lognormal:0.7").quantiles(mean, 24_576, 8)

    @pytest.mark.parametrize(("budget", "count"), [(0, 8), (8192, 0), (1 << 40, 8)])
    def test_no_traces_or_an_absurd_budget_are_errors(self, budget: int, count: int) -> None:
        with pytest.raises(UsageError, match="traces of at most"):
            parse("fixed").quantiles(1, budget, count)

    def test_only_recorded_lengths_have_a_mean_of_their_own(self, tmp_path: Path) -> None:
        recorded = parse(written(tmp_path, "100\n300\n200\n"))
        assert list(recorded.quantiles(None, 1000, 3)) == [300, 200, 100]
        assert list(recorded.quantiles(None, 250, 3)) == [250, 200, 100]
        assert recorded.truncated_share(None, 250, 3) == pytest.approx(1 / 3)
        with pytest.raises(UsageError, match="only recorded lengths have their own"):
            parse("fixed").quantiles(None, 1000, 3)

    def test_a_thousand_lengths_take_under_three_milliseconds(self) -> None:
        distribution = parse("lognormal:0.7")
        seconds = []
        for mean in range(5000, 5020):
            start = time.process_time()
            distribution.quantiles(mean, 24_576, 1024)
            seconds.append(time.process_time() - start)
        assert min(seconds) < 3e-3


class TestRecordedFiles:
    @given(lengths=st.lists(st.integers(1, 1 << 20), min_size=1, max_size=30))
    @pytest.mark.parametrize("form", ["lines", "json", "jsonl"])
    def test_each_form_gives_back_what_was_written(
        self, tmp_path_factory: pytest.TempPathFactory, form: str, lengths: list[int]
    ) -> None:
        text = {
            "lines": "\n".join(map(str, lengths)) + "\n\n",
            "json": json.dumps(lengths, indent=1),
            "jsonl": "".join(json.dumps({"thinking_tokens": n, "error": None}) + "\n" for n in lengths),
        }[form]
        recorded = parse(written(tmp_path_factory.mktemp("recorded"), text))
        assert list(recorded.recorded) == sorted(lengths, reverse=True)
        np.testing.assert_array_equal(recorded.quantiles(None, 1 << 20, len(lengths)), sorted(lengths, reverse=True))

    def test_a_given_mean_scales_them_until_the_budget_cuts(self, tmp_path: Path) -> None:
        recorded = parse(written(tmp_path, "1000\n2000\n3000\n"))
        assert list(recorded.quantiles(4000, 100_000, 3)) == [6000, 4000, 2000]
        assert list(recorded.quantiles(4000, 5000, 3)) == [5000, 4667, 2333]

    def test_traces_that_failed_are_left_out(self, tmp_path: Path) -> None:
        lines = [{"thinking_tokens": 7, "error": None}, {"thinking_tokens": 0, "error": "timed out"}]
        assert parse(written(tmp_path, "\n".join(map(json.dumps, lines)))).recorded == (7,)

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            ("", "no lengths"),
            ("\n \n", "no lengths"),
            ("[]", "no lengths"),
            ("eight\n", "line 1 of .* gives 'eight'"),
            ("8192\n-4\n", "line 2 of .* gives '-4'"),
            ("0\n", "gives 0; expected thinking tokens"),
            ("8192.5\n", "gives '8192.5'"),
            ("1e4\n", "gives '1e4'"),
            ("nan\n", "gives 'nan'"),
            ("9" * 5000, "gives '9999"),
            ("99999999999\n", "gives 99999999999"),
            ("[8192, NaN]", "item 1 of .* gives nan"),
            ("[8192, true]", "item 1 of .* gives True"),
            ("[8192.0]", "item 0 of .* gives 8192.0"),
            ('["8192"]', "gives '8192'"),
            ("[" * 100_000, "is not JSON"),
            ("[8192,", "is not JSON"),
            ("[" + "9" * 5000 + "]", "is not JSON"),
            ('{"tokens": 5}\n', "line 1 of .* gives None"),
            ('{"thinking_tokens": "5"}\n', "gives '5'"),
            ("{bad\n", "line 1 of .* is not JSON"),
            (b"\xff\xfe\x00\x01" * 9, "it is not text"),
            (b"\x00" * 64, "line 1"),
        ],
    )
    def test_a_bad_file_is_one_clear_line(self, tmp_path: Path, content: str | bytes, what: str) -> None:
        with pytest.raises(UsageError, match=what) as caught:
            parse(written(tmp_path, content))
        assert "expected" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    @pytest.mark.parametrize("text", ["", ".", "/", "/dev/null", "no/such/file", "a\0b", "lognorm:0.7", "fixed:3"])
    def test_what_is_neither_a_name_nor_a_file_says_what_is(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"expected fixed, lognormal:0.7 .*, or a file of recorded lengths"):
            parse(text)


class TestParse:
    def test_names_give_their_distribution(self) -> None:
        assert parse("fixed") == Distribution("fixed", cv=0)
        assert parse("lognormal:0.7") == Distribution("lognormal:0.7", cv=0.7)

    @pytest.mark.parametrize("cv", ["", "0", "-1", "11", "nan", "inf", "1e-3", "abc", "0.7x", "٣", "9" * 5000])
    def test_a_coefficient_of_variation_that_makes_no_sense_is_an_error(self, cv: str) -> None:
        with pytest.raises(UsageError, match=r"as in lognormal:0\.7") as caught:
            parse(f"lognormal:{cv}")
        assert len(str(caught.value)) < 200
