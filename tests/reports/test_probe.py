"""The probe's chapter: what it says, draws and tabulates of a record."""

from __future__ import annotations

from typing import Any

import pytest

from reports.chapter import Chapter
from reports.page import build, to_html, to_markdown
from reports.probe import probe_chapter
from scaling.laws import Job
from scaling.results import Store, load

METHOD = "avg@k by bootstrap; 8 samples a problem"


def estimate(value: float | None, low: float = 0.1, high: float | None = 0.9) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "problems": 4, "samples": 32, "method": METHOD}


def arm(context: int | None, state: int | None = None, **changes: Any) -> dict[str, Any]:
    label = "longcot" if context is None else f"delethink C={context} m={state}"
    return {
        "label": label, "environment": "longcot" if context is None else "delethink", "environment_parameters": {},
        "context_size": context,
        "state_size": state, "iterations": None if context is None else 7, "budget": 1024, "traces": 32, "missing": 0,
        "failed": 0, "problems": 4, "ended": estimate(0.75), "chunked": estimate(0.5), "mean_thinking_tokens": 300.0,
        "mean_chunks": 2.5, **changes,
    }  # fmt: skip


def record(**changes: Any) -> dict[str, Any]:
    arms = changes.pop("arms", [arm(None), arm(128, 32), arm(256, 64), arm(256, 128)])
    names = [each["label"] for each in arms]
    swept = [each for each in arms if each["context_size"] == 256]
    point = {"ended": estimate(0.5), "budget": 1024, **estimate(0.5)}
    sizes = ("context_size", "state_size", "iterations")
    return {
        "format": "probe", "schema_version": "1.0", "model": "tiny", "tasks": ["sums", "<b>gcd</b>"], "budget": 1024,
        "arms": arms,
        "accuracy": [{"arm": name, "budget": b, **estimate(0.5)} for name in names for b in (512, 1024)],
        "by_task": [{"arm": name, "task": task, **estimate(0.25)} for name in names for task in ("sums", "<b>gcd</b>")],
        "pass": [{"arm": name, "k": k, "budget": 1024, **estimate(0.5)} for name in names for k in (1, 2)],
        "verdicts": [
            {"arm": names[-1], "against": "longcot", "budget": 1024, "unpaired": 2, "text": "Delethink keeps 97 %.",
             "difference": estimate(-0.02), "ratio": estimate(0.97, 0.9, None)}
        ],
        "coverage": [
            {"arm": names[-1], "against": "longcot", "problems": 4, "both": ["p0", "p1"], "only_first": ["p2"],
             "only_second": [], "neither": ["p3"]}
        ],
        "state": [{**{size: each[size] for size in sizes}, "arm": each["label"], **point} for each in swept],
        "context": [{**{size: each[size] for size in sizes}, "arm": each["label"], **point} for each in arms[1::2]],
        "published": [{"claim": "nearly coincides", "source": "a paper"}],
        **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def chapter() -> Chapter:
    return probe_chapter("first run", record())


def test_the_verdict_comes_first_and_what_is_left_out_last(chapter: Chapter) -> None:
    assert chapter.sentences[0] == "Delethink keeps 97 %."
    assert chapter.sentences[1].startswith("longcot: 50 [10, 90] % right at 1k thinking tokens, 75 [10, 90] % ended")
    assert chapter.sentences[-1].endswith("2 problems have traces in only one of the two arms, and are not compared.")


def test_every_part_has_its_figure_or_table_named_after_the_run(chapter: Chapter) -> None:
    assert [section.anchor for section in chapter.sections] == [
        f"first-run-{part}" for part in ("accuracy", "traces", "coverage", "pass", "ablations", "published")
    ]
    drawings = [drawing.name for section in chapter.sections for drawing in section.drawings]
    assert drawings == ["first-run-accuracy", "first-run-coverage", "first-run-state", "first-run-context"]
    tables = {table.name: table for section in chapter.sections for table in section.tables}
    assert tables["first-run-pass"].shown.iloc[0].to_dict() == {
        "arm": "longcot", "k = 1": "50 [10, 90]", "k = 2": "50 [10, 90]"
    }  # fmt: skip
    assert tables["first-run-tasks"].shown["task"].tolist() == ["sums"] * 4 + ["<b>gcd</b>"] * 4
    assert tables["first-run-coverage"].data["solved_by"].tolist() == ["both", "both", "only_first", "neither"]
    assert tables["first-run-published"].caption == "Published, not measured here."


def test_captions_tell_what_how_many_and_how(chapter: Chapter) -> None:
    captions = {d.name: d.caption for section in chapter.sections for d in section.drawings}
    assert "4 problems and 32 to 32 traces an arm; shades are 95 % intervals" in captions["first-run-state"]
    assert METHOD in captions["first-run-state"]
    assert "majority vote of all its samples (8 a problem and arm)" in captions["first-run-coverage"]


def test_a_state_larger_than_a_later_chunk_is_said_not_to_be_carried_whole(chapter: Chapter) -> None:
    def captions(made: Chapter) -> list[str]:
        shown = [each for s in made.sections for each in (*s.drawings, *s.tables) if each.name.endswith("run-state")]
        assert len(shown) == 2
        return [each.caption for each in shown]

    assert not any("Algorithm 1" in caption for caption in captions(chapter))
    large = probe_chapter("first run", record(arms=[arm(None), arm(256, 64), arm(256, 192)], context=[]))
    assert all("later ones get all of the last response, which is C − m" in caption for caption in captions(large))


def test_what_a_probe_lacks_is_left_out() -> None:
    dead = arm(256, 128, ended=None, chunked=None, failed=32, mean_thinking_tokens=None, mean_chunks=None)
    found = record(arms=[arm(None), dead], verdicts=[], coverage=[], published=[], state=[], context=[], tasks=["sums"])
    for part in ("accuracy", "by_task", "pass"):
        found[part] = [point for point in found[part] if point["arm"] == "longcot"]
    made = probe_chapter("r", found)
    assert [section.title for section in made.sections] == [
        "Accuracy by thinking budget", "Ends, lengths and chunks", "pass@k"
    ]  # fmt: skip
    assert "delethink C=256 m=128: every one of 32 traces failed." in made.sentences


def test_a_page_of_a_probe_alone_escapes_what_it_quotes(chapter: Chapter, tmp_path: Any) -> None:
    store = Store.create(tmp_path / "run", {"study": "probe"})
    report = build(load(store), {"first": store.manifest}, [], Job(), studies=[chapter])
    page, text = to_html(report), to_markdown(report)
    assert "Delethink keeps 97 %." in page
    assert "<b>gcd" not in page
    assert "<b>gcd" not in text
