"""What of a run, of benchmarks and of a saved baseline a gate compares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import ScalingError, StoreError
from scaling.gate.side import Side, read_side, same
from scaling.results import ALLOCATED

LONGCOT = {"environment": "longcot", "context_size": None, "state_size": None, "carryover": None}


# runs


def test_a_cell_of_a_run_has_its_counters_seconds_and_plain_words(make_run: Any) -> None:
    side = read_side(make_run({}, {"repeat": 1, "device_seconds_per_trace": 0.6}))
    assert (side.kind, side.name, side.fingerprint_id) == ("run", "run", "fp0")
    (cell,) = side.measured.values()
    assert (cell.key, cell.label) == ("0123abcd", "Delethink C=1k m=512 at 2k tokens, rollout")
    assert (cell.status, cell.reason) == ("ok", None)
    assert cell.seconds == (0.5, 0.6)
    assert cell.counters == {
        "actual_thinking_tokens": 2048,
        "traces": 4,
        "prompt_tokens": 64,
        "chunks": 12,
        "decode_tokens": 8192,
        "prefill_computed_tokens": 5664,
        "prefill_cached_tokens": 0,
        "processed_tokens": 13844,
        "preemptions": 0,
        "kv_bytes_per_token": 4096,
        "peak_kv_bytes": 6_800_000,
        "flops_causal": 50_000_000_000,
    }


def test_a_configuration_names_the_weights_and_not_where_they_lie_nor_where_a_server_is(make_run: Any) -> None:
    config = read_side(make_run({})).config
    assert config == {"model": "here", "lengths": [2048], "weights": "sha256:0", "device": "cpu"}


def test_labels_tell_environment_length_phase_and_method_apart(make_run: Any) -> None:
    rows = [
        {"cell_id": "a", **LONGCOT, "phase": "update", "mean_thinking_tokens": 1500},
        {"cell_id": "b", "method": "profile"},
        {"cell_id": "c", **LONGCOT, "phase": "sync"},
    ]
    labels = [cell.label for cell in read_side(make_run(*rows)).measured.values()]
    assert labels == [
        "LongCoT at 1500 tokens, update",
        "Delethink C=1k m=512 at 2k tokens, rollout, profiled",
        "LongCoT, sync",
    ]


def test_a_count_on_which_repeats_disagree_is_no_counter(make_run: Any) -> None:
    (cell,) = read_side(make_run({}, {"repeat": 1, "preemptions": 1})).measured.values()
    assert "preemptions" not in cell.counters
    assert "chunks" in cell.counters


def test_a_profiles_visits_to_its_grid_are_not_the_rollouts_tokens(make_run: Any) -> None:
    (cell,) = read_side(make_run({"method": "profile"})).measured.values()
    assert "processed_tokens" not in cell.counters
    assert cell.counters["prefill_computed_tokens"] == 5664


def test_a_servers_own_business_is_no_counter(make_run: Any) -> None:
    (cell,) = read_side(make_run({"engine": "openai", "peak_kv_bytes": None})).measured.values()
    assert list(cell.counters)[-2:] == ["kv_bytes_per_token", "flops_causal"]
    assert not {"prefill_computed_tokens", "prefill_cached_tokens", "processed_tokens"} & cell.counters.keys()


def test_seconds_of_the_simulated_engine_are_a_counter_to_their_rounding(make_run: Any) -> None:
    repeats = [{"engine": "simulated", "repeat": r, "wall_seconds": 2.1 * (1 + r * 1e-15)} for r in range(3)]
    (cell,) = read_side(make_run(*repeats)).measured.values()
    assert cell.counters["planned_seconds"] == 2.1


def test_the_peak_is_what_an_allocator_counted(make_run: Any) -> None:
    counted = {"memory_method": ALLOCATED}
    rows = [
        {"cell_id": "a", **counted, "peak_memory_bytes": 1e9},
        {"cell_id": "a", **counted, "peak_memory_bytes": 2e9, "repeat": 1},
        {"cell_id": "b", **counted, "memory_valid": False},
        {"cell_id": "c", "memory_method": "resident set, the kernel's high-water mark"},
    ]
    peaks = [cell.memory_bytes for cell in read_side(make_run(*rows)).measured.values()]
    assert peaks == [2e9, None, None]


def test_seconds_that_were_spoilt_are_left_out_where_there_are_better_ones(make_run: Any) -> None:
    spoilt = {"repeat": 1, "seconds_valid": False, "seconds_reason": "foreign_process", "device_seconds_per_trace": 9.0}
    (cell,) = read_side(make_run({}, spoilt)).measured.values()
    assert cell.seconds == (0.5,)


def test_a_cell_with_a_failed_repeat_failed_and_says_how_often_and_why(make_run: Any) -> None:
    failed = {"repeat": 1, "status": "oom", "reason": "no memory", "chunks": None, "seconds_valid": False}
    (cell,) = read_side(make_run({}, failed)).measured.values()
    assert (cell.status, cell.reason) == ("oom", "1 of 2 repeats: no memory")
    assert cell.counters["chunks"] == 12


# benchmarks


def test_a_benchmark_has_its_numbers_as_counters_and_its_rounds_in_three(benchmarks: Path) -> None:
    side = read_side(benchmarks)
    assert (side.kind, side.name, side.config) == ("benchmarks", "before", {})
    assert list(side.measured) == ["test_sums.py::test_sum[10]", "test_sums.py::test_sum[20]"]
    small = side.measured["test_sums.py::test_sum[10]"]
    assert (small.label, small.counters) == ("test_sum[10]", {"tokens": 10, "share": 0.5})
    low, median, high = small.seconds
    assert 0 < low <= median <= high < 1


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        (lambda machine: machine.update(node="another"), True),
        (lambda machine: machine["cpu"].update(hz_actual_friendly="1 GHz"), True),
        (lambda machine: machine["cpu"].update(brand_raw="another"), False),
        (lambda machine: machine.update(python_version="3.99.0"), False),
    ],
    ids=["host", "clock of the moment", "processor", "python"],
)
def test_benchmarks_are_alike_on_one_processor_with_one_python(
    benchmarks: Path, rewritten: Any, change: Any, alike: bool
) -> None:
    other = read_side(rewritten(lambda data: change(data["machine_info"])))
    assert (other.fingerprint_id == read_side(benchmarks).fingerprint_id) is alike


def test_rounds_too_short_for_the_clock_are_no_seconds(rewritten: Any) -> None:
    def change(data: dict[str, Any]) -> None:
        data["benchmarks"][0]["stats"] |= {"q1": 0.0, "median": 0.0, "q3": 1e-9}

    short, _ = read_side(rewritten(change)).measured.values()
    assert short.seconds == (1e-9,)


# saved


def test_what_is_saved_reads_back_as_it_was(make_run: Any, benchmarks: Path, tmp_path: Path) -> None:
    for side in (read_side(make_run({})), read_side(benchmarks)):
        path = tmp_path / "saved.json"
        path.write_text(json.dumps(side.to_json()))
        assert read_side(path) == side


def test_what_a_newer_minor_schema_added_is_left_out(make_run: Any, tmp_path: Path) -> None:
    side = read_side(make_run({}))
    data = side.to_json() | {"schema_version": "1.9", "added": 1}
    data["measured"][0]["added"] = 1
    path = tmp_path / "saved.json"
    path.write_text(json.dumps(data))
    assert read_side(path) == side


# bad input


def newer(side: Side) -> str:
    return json.dumps(side.to_json() | {"schema_version": "2.0"})


def counted(chunks: object) -> Any:
    def text(side: Side) -> str:
        data = side.to_json()
        data["measured"][0]["counters"]["chunks"] = chunks
        return json.dumps(data)

    return text


def told(**changes: object) -> Any:
    return lambda side: json.dumps(side.to_json() | changes)


def without_counters(side: Side) -> str:
    data = side.to_json()
    del data["measured"][0]["counters"]
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (newer, "has schema 2.0, newer than the 1.x that is understood"),
        (without_counters, "is damaged (KeyError: 'counters'); write it again"),
        (counted(float("nan")), "is damaged (ValueError: nan is no count); write it again"),
        (counted("many"), "is damaged (TypeError: "),
        (counted(10**400), "is damaged (OverflowError: "),
        (told(kind="page"), "is damaged (ValueError: 'page' is no kind of side); write it again"),
        (lambda _: '{"results": []}', "is neither a saved baseline nor what pytest-benchmark wrote"),
        (lambda _: '{"machine_info": {}, "benchmarks": [{"name": "test"}]}', "is damaged (KeyError: 'fullname')"),
        (lambda _: '{"machine_info": null, "benchmarks": []}', "is damaged (AttributeError"),
        (lambda _: "[]", "is damaged: expected a JSON object"),
        (lambda _: "not JSON", "is damaged: Expecting value"),
        (lambda _: "[" * 100_000, "is damaged: maximum recursion depth exceeded"),
    ],
    ids=[
        "newer",
        "incomplete",
        "no number",
        "text",
        "no float",
        "no kind",
        "something else",
        "no benchmark",
        "no machine",
        "a list",
        "no JSON",
        "too deep",
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_name(
    make_run: Any, tmp_path: Path, text: Any, said: str
) -> None:
    path = tmp_path / "side.json"
    path.write_text(text(read_side(make_run({}))))
    with pytest.raises(StoreError) as error:
        read_side(path)
    assert str(error.value).startswith(f"{path} {said}")


def test_a_run_of_a_newer_schema_is_refused(make_run: Any) -> None:
    path = make_run({})
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": "1.0"', '"schema_version": "2.0"'))
    with pytest.raises(StoreError, match="newer than the"):
        read_side(path)


def test_names_are_text_whatever_a_file_holds(make_run: Any, tmp_path: Path) -> None:
    path = tmp_path / "side.json"
    path.write_text(told(name=5, fingerprint_id=["fp"])(read_side(make_run({}))))
    side = read_side(path)
    assert (side.name, side.fingerprint_id) == ("5", "['fp']")


def test_what_is_not_there_and_what_holds_no_rows_say_what_was_expected(make_run: Any, tmp_path: Path) -> None:
    with pytest.raises(ScalingError, match="expected the directory of a run, a file that"):
        read_side(tmp_path / "nowhere")
    with pytest.raises(ScalingError, match="has no row yet; measure it with `scaling run --resume"):
        read_side(make_run(name="empty"))


# what is equal


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (10**12, 10**12, True),
        (10**12, 10**12 + 1, False),
        (0.1 + 0.2, 0.3, True),
        (1.0001, 1.0002, False),
        (2.0**60, 2.0**60 * (1 + 1e-12), True),
        (0, 0, True),
        (0, 1, False),
    ],
)
def test_counts_are_equal_exactly_and_sums_of_floats_to_their_rounding(one: float, other: float, equal: bool) -> None:
    assert same(one, other) is equal
