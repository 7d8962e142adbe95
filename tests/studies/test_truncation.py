"""Thoughts cut short: the answer goes on from the chunk that the cut fell in, and stands beside the trimmed one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import StoreError, UsageError
from scaling.results import Store
from scaling.tasks.walk import TOKENIZER, Walk
from studies.trace_frame import labels, records
from studies.truncation import Forcing, analyse, results, truncate

FORCING = Forcing((4, 8, 9), "#", 2)


@pytest.fixture
def run(whole: Store, tmp_path: Path) -> Store:
    return Store.open(shutil.copytree(whole.path, tmp_path / "run"))


@pytest.fixture
def force(walkers: Callable[..., Any]) -> Callable[..., None]:
    study = walkers()
    tasks = {"walk": Walk(4, 0, 0, 2)}

    def call(run: Store, forcing: Forcing = FORCING, sources: Any = None, **more: Any) -> None:
        truncate(run, forcing, sources or [study.arms[0].source], tasks, study.engine, **more)

    return call


def all_results(run: Store) -> list[dict[str, Any]]:
    return [one for label in labels(run) for one in results(run, label)]


def test_every_trace_has_a_record_at_every_budget(run: Store, force: Any) -> None:
    force(run)
    found = all_results(run)
    assert len(found) == 2 * 8 * 3
    traces = {(r["arm"], r["problem"]["id"], r["sample"]): r for label in labels(run) for r in records(run, label)}
    for one in found:
        trace = traces[one["arm"], one["problem"], one["sample"]]
        whole = trace["ended"] and trace["thinking_tokens"] <= one["budget"]
        assert one["cut"] is not whole
        if whole:
            assert one["forced"] == one["trimmed"] == trace["score"]
        else:
            assert 1 <= len(one["tokens"]) <= 2
        if str(one["budget"]) in trace["scores"]:
            assert one["trimmed"] == trace["scores"][str(one["budget"])]


def test_a_cut_goes_on_from_the_prompt_of_its_chunk(run: Store, force: Any, walkers: Any) -> None:
    """Greedily, the first forced token follows that chunk's prompt, what is kept of it, and the cue."""
    import torch
    from transformers import AutoModelForCausalLM

    run = _greedy(run)
    force(run)
    model = AutoModelForCausalLM.from_pretrained(walkers().arms[0].source.path, dtype=torch.float32)
    label = "delethink C=8 m=4"
    traces = {(r["problem"]["id"], r["sample"]): r for r in records(run, label)}
    cuts = [one for one in results(run, label) if one["cut"] and one["budget"] == 9]
    assert cuts, "no trace is longer than a chunk"
    for one in cuts:
        first, second = traces[one["problem"], one["sample"]]["chunks"][:2]
        prompt = second["prompt"] + second["response"][: 9 - len(first["response"])] + TOKENIZER.encode("#")
        logits = model(torch.tensor([prompt])).logits
        assert one["tokens"][0] == int(logits[0, -1].argmax())


def _greedy(run: Store) -> Store:
    path = run.path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sampling"]["temperature"] = 0.0
    path.write_text(json.dumps(manifest))
    return Store.open(run.path)


def test_an_interrupted_call_goes_on_to_the_same_answers(run: Store, force: Any) -> None:
    force(run)
    whole = all_results(run)
    file = next((run.path / "truncation").iterdir())
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    seen: list[Any] = []
    force(run, observe=seen.append)
    assert len(seen) == len(lines) - 7

    def order(found: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(one, sort_keys=True) for one in found)

    assert order(all_results(run)) == order(whole)


def test_another_cue_does_not_mix_with_what_is_there(run: Store, force: Any) -> None:
    force(run)
    with pytest.raises(StoreError, match="was forced by '#'"):
        force(run, replace(FORCING, cue=","))


def test_only_the_model_that_wrote_the_traces_is_asked(run: Store, force: Any, walkers: Any) -> None:
    other = replace(walkers().arms[0].source, digest="0" * 64)
    with pytest.raises(UsageError, match="no model given has them"):
        force(run, sources=[other])
    assert not (run.path / "truncation").exists()


def test_a_cue_that_the_tokenizer_cannot_write_is_refused(run: Store, force: Any) -> None:
    with pytest.raises(UsageError, match="cannot write the cue"):
        force(run, Forcing((4,)))


@pytest.mark.parametrize("budgets", [(), (0,)])
def test_a_cut_needs_a_token(budgets: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="1 thinking token or more"):
        Forcing(budgets)


def test_forced_and_trimmed_are_compared_by_arm_and_budget(run: Store, force: Any) -> None:
    force(run)
    found = all_results(run)
    found[0] |= {"error": "the server is gone", "forced": None}
    record = analyse(found)
    assert [(p["arm"], p["budget"]) for p in record["points"]][:3] == [("delethink C=8 m=4", b) for b in (4, 8, 9)]
    assert sum(p["failed"] for p in record["points"]) == 1
    for point in record["points"]:
        apart = point["forced"]["value"] - point["trimmed"]["value"]
        assert point["difference"]["value"] == pytest.approx(apart)
        assert point["forced"]["low"] <= point["forced"]["value"] <= point["forced"]["high"]
    json.dumps(record, allow_nan=False)
