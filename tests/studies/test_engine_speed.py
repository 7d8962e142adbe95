"""The speed study: the same work for every engine, every time kept, an engine that is missing said so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from studies.engine_speed import Work, fastest, spread, works

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The record and the page of a quick run where vLLM cannot be imported."""
    folder = tmp_path_factory.mktemp("speed")
    (folder / "vllm.py").write_text("raise ImportError('no vllm here')\n")
    arguments = ("--quick", "--engines", "local,transformers,vllm", "--threads", "1", "--rounds", "2")
    out = folder / "speed.json"
    done = subprocess.run(
        [sys.executable, "-m", "studies.engine_speed", *arguments, "--out", out],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    page = out.with_suffix(".md").read_text()
    assert done.stdout.rstrip() == page.rstrip()
    return json.loads(out.read_text()), page


def test_every_engine_does_every_piece_of_work_in_every_round(ran: tuple[dict[str, Any], str]) -> None:
    record, _ = ran
    done = [(s["engine"], Work(**s["work"]), s["round"]) for s in record["samples"]]
    assert sorted(done, key=str) == sorted(
        ((engine, work, n) for engine in ("local", "transformers") for work in works(quick=True) for n in (1, 2)),
        key=str,
    )


def test_every_time_is_kept_and_its_parts_fit_into_it(ran: tuple[dict[str, Any], str]) -> None:
    record, _ = ran
    for sample in record["samples"]:
        assert 0 < sample["prefill_seconds"] + sample["decode_seconds"] <= sample["seconds"]
        work = Work(**sample["work"])
        assert sample["decode_tokens"] == work.batch * (work.thinking - len(work.lengths()))
        assert sample["threads"] == 1
    assert record["machine"]["hardware"]["cpu"] in ran[1]
    assert set(record["engines"][1]["versions"]) == {"torch", "transformers"}


def test_an_engine_that_is_not_installed_is_a_row_that_says_so(ran: tuple[dict[str, Any], str]) -> None:
    record, page = ran
    assert {e["engine"]: e.get("absent") for e in record["engines"]} == {
        "local": None,
        "transformers": None,
        "vllm": "not installed: ImportError: no vllm here",
    }
    assert "vllm         | not installed: ImportError: no vllm here" in page


def test_the_thread_count_that_promises_the_shortest_whole_is_taken() -> None:
    work = Work("long", "tiny", "float32", 1, 64, 101)
    tried = [  # two threads encode faster and decode slower: 1 + 100 × 0.1 against 2 + 100 × 0.05 seconds
        {"threads": 2, "prefill_seconds": 1.0, "decode_seconds": 1.0, "decode_tokens": 10},
        {"threads": 1, "prefill_seconds": 2.0, "decode_seconds": 0.5, "decode_tokens": 10},
        {"threads": 4, "error": "MemoryError: "},
    ]
    samples = [{"engine": "local", "work": asdict(work), "round": 0, **sample} for sample in tried]
    assert fastest(samples, "local", work) == 1


def test_chunked_work_re_encodes_what_it_carries() -> None:
    work = Work("trace", "tiny", "float32", 8, 64, 4096, context_size=512)
    assert work.lengths() == [512] + [256] * 14
    assert work.context() == 64 + 64 + 256 + 256
    assert Work("trace", "tiny", "float32", 8, 64, 4096).context() == 64 + 4096


def test_prompts_are_the_same_for_all_engines_and_new_in_every_round() -> None:
    work = works(quick=True)[0]
    assert work.queries(0, 100) == work.queries(0, 100) != work.queries(1, 100)


def test_a_figure_is_a_median_with_its_range() -> None:
    assert spread([1234.5, 1199.0, 1300.0]) == "1,230 (1,200–1,300)"
    assert spread([0.5]) == "0.500 (0.500–0.500)"
    assert spread([]) == "–"


@pytest.mark.parametrize("arguments", [("--engines", "locl"), ("--only", "nonsense")])
def test_nonsense_is_refused_in_one_line(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    from studies.engine_speed import main

    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert f"{arguments[1]!r}" in capsys.readouterr().err.splitlines()[-1]
