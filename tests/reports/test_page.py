"""A page that needs nothing else, says what it may, and escapes what it is told."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pandas as pd
import pytest

from reports.page import build, to_html, write
from scaling.errors import StoreError
from scaling.laws import Job, fit_frame

from .conftest import LADDER

ATTACK = "<script>alert('x')</script>|*b*"
MANIFEST = {"config": {"model": ATTACK, "lengths": [1024, 2048]}, "git": None, "cells": [{"cell_id": "a"}]}


@pytest.fixture(scope="module")
def frame(rows):
    return pd.concat(
        [
            rows(phases=("rollout", "update", "logprob")),
            rows(lengths=LADDER, methods=("profile",)),
            rows(lengths=[131072], failed=("error", ATTACK)),
            rows(model=ATTACK, repeats=2, sizes=((1024, 512), (2048, 1024))),
        ],
        ignore_index=True,
    )


@pytest.fixture(scope="module")
def report(frame):
    return build(frame, {"first": MANIFEST}, fit_frame(frame), Job(), [f"no law for {ATTACK}"])


@pytest.fixture(scope="module")
def page(report):
    return to_html(report)


class Page(HTMLParser):
    """Every element's attributes, and the elements that are left open."""

    VOID = frozenset({"meta", "input", "path", "use", "rect", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def parsed(page):
    return Page(page)


def test_the_page_is_well_formed_with_unique_ids(parsed):
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_nothing_is_loaded_from_anywhere(page, parsed):
    assert {tag for tag, _ in parsed.elements}.isdisjoint({"script", "link", "img", "iframe", "object"})
    targets = [a[key] for _, a in parsed.elements for key in ("href", "src", "xlink:href") if key in a]
    assert all(target.startswith(("#", "data:")) for target in targets)
    style = "".join(re.findall(r"<style>.*?</style>", page, re.S))
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_contents_lead_to_every_section(parsed):
    headings = {a["id"] for tag, a in parsed.elements if tag in {"h2", "h3"} and "id" in a} - {"remarks"}
    links = {a["href"].removeprefix("#") for a in parsed.all("a") if a["href"].startswith("#")}
    assert headings <= links
    assert {link for link in links if link != "main"} <= headings


def test_text_from_data_is_escaped(page, report, tmp_path):
    assert ATTACK not in page
    assert "&lt;script&gt;alert" in page
    write(report, tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "<script>" not in markdown
    assert "\\|\\*b\\*" in markdown


def test_both_themes_can_be_chosen_by_keyboard(page, parsed):
    assert {a["id"] for a in parsed.all("input") if a["type"] == "radio"} == {
        "theme-system", "theme-light", "theme-dark"
    }  # fmt: skip
    assert "prefers-color-scheme: dark" in page
    assert all("tabindex" in a for a in parsed.all("div") if "scroll" in a.get("class", ""))


def test_figures_have_captions_that_say_how_many_and_how_measured(report):
    drawings = [d for c in report.chapters for s in c.sections for d in s.drawings]
    names = {drawing.name.removesuffix("-tiny") for drawing in drawings if drawing.name.endswith("-tiny")}
    assert names == {
        "cost-rollout-log", "cost-rollout-linear", "cost-update-log", "cost-logprob-log", "ratio-rollout",
        "curvature", "phases", "throughput", "kv-memory", "peak-memory",
    }  # fmt: skip
    cost = next(d for d in drawings if d.name == "cost-rollout-log-tiny")
    assert "means of 3 repeats" in cost.caption
    assert "full" in cost.caption
    assert "profile" in cost.caption


def test_downloads_are_the_files(report, parsed, tmp_path):
    write(report, tmp_path)
    links = {a["download"]: a["href"] for a in parsed.all("a") if "download" in a}
    for name, folder in (("cost-rollout-log-tiny.svg", "figures"), ("tiny-months.csv", "tables")):
        content = base64.b64decode(links[name].partition("base64,")[2])
        assert content == (tmp_path / folder / name).read_bytes()


def test_every_file_is_written_and_readable(report, frame, tmp_path):
    files = write(report, tmp_path / "new" / "report")
    assert files[0].name == "index.html"
    assert all(path.stat().st_size for path in files)
    for path in files:
        if path.suffix == ".svg":
            ElementTree.parse(path)
        elif path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
    stored = pd.read_csv(tmp_path / "new" / "report" / "rows.csv")
    assert stored["device_seconds_per_trace"].tolist() == pytest.approx(
        frame["device_seconds_per_trace"].tolist(), nan_ok=True
    )


def test_markdown_pictures_are_the_files(report, tmp_path):
    write(report, tmp_path)
    linked = re.findall(r'(?:src|srcset)="([^"]+)"', (tmp_path / "report.md").read_text())
    assert linked
    assert all((tmp_path / name).is_file() for name in linked)


def test_figure_data_are_the_rows_means(report, frame):
    drawing = next(d for c in report.chapters for s in c.sections for d in s.drawings if d.name == "throughput-tiny")
    data = pd.read_csv(io.StringIO(drawing.data.to_csv(index=False)))
    at = data[(data["environment"] == "LongCoT") & (data["thinking_tokens"] == 98304)]
    rows = frame[(frame["environment"] == "longcot") & (frame["mean_thinking_tokens"] == 98304)]
    assert at["tokens_per_second_mean"].item() == pytest.approx(rows["tokens_per_second"].mean())


def test_the_headline_names_the_largest_length_its_ratio_and_the_bend(report):
    tiny = report.chapters[0]
    first = tiny.numbers["ratios"][0]
    assert (first["thinking_tokens"], first["method"], first["pairs"]) == (98304, "profile", 3)
    assert first["low"] < first["ratio"] < first["high"]
    assert tiny.sentences[0].startswith(f"At 96k thinking tokens LongCoT costs {first['ratio']:.3g} times what")
    assert [law["method"] for law in tiny.numbers["laws"]] == ["full", "full"]
    assert any("above zero: it bends upward" in sentence for sentence in tiny.sentences)


def test_a_run_without_usable_rows_still_has_a_page(rows):
    report = build(rows(failed=("oom", "too big")), {"first": MANIFEST}, [], Job())
    assert report.headline == ["No repeat finished with usable times, so there is nothing to compare; see validity."]
    page = to_html(report)
    assert "too big" in page
    assert "<svg" not in page


def test_a_run_without_rows_says_so(rows):
    report = build(rows().iloc[:0], {"first": MANIFEST}, [], Job())
    assert "no rows yet" in to_html(report)


def test_one_length_gives_tables_and_no_curves(rows):
    report = build(rows(lengths=[2048], repeats=1), {"first": MANIFEST}, [], Job())
    assert "At 2k thinking tokens LongCoT costs" in report.headline[0]
    assert "1 pair)" in report.headline[0]
    assert "<svg" not in to_html(report)


def test_a_place_that_cannot_be_written_is_one_line(report, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*taken"):
        write(report, tmp_path / "taken")


def test_weight_transfer_is_told_a_step_and_one_phase_alone_is_named(rows):
    frame = pd.concat([rows(), rows(lengths=[1024], phases=("update",), failed=("error", "broken"))])
    sync = frame.iloc[:1].assign(phase="sync", device_seconds_per_trace=float("nan"), wall_seconds=0.25)
    page = to_html(build(pd.concat([frame, sync]), {"first": MANIFEST}, [], Job()))
    assert "Only one phase has usable times: rollout." in page
    assert "A weight transfer takes 0.250 s a step, whatever is thought (n = 1)." in page


def test_a_simulated_run_says_first_that_nothing_was_measured(rows):
    report = build(rows(engine="simulated", device="NVIDIA H100 (simulated)"), {"first": MANIFEST}, [], Job())
    assert report.headline[0].startswith("Simulated on NVIDIA H100 (simulated)")
    assert "nothing was measured" in report.headline[0]


def test_numbers_that_rest_on_a_busy_machine_say_so(rows):
    busy = rows(lengths=[1024, 2048], seconds_valid=False, seconds_reason="another process ran")
    report = build(pd.concat([busy, rows(lengths=[4096])]), {"first": MANIFEST}, [], Job())
    assert "Doubtful: 12 of the 18 repeats" in report.headline[-1]
    assert "another process ran" in report.headline[-1]
    assert "Doubtful" not in " ".join(build(rows(), {"first": MANIFEST}, [], Job()).headline)


def test_the_headline_takes_full_rows_where_both_methods_reach_as_far(rows):
    report = build(rows(methods=("full", "profile")), {"first": MANIFEST}, [], Job())
    assert report.numbers[0]["ratios"][0]["method"] == "full"
