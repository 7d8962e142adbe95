"""`scaling report`, from stored runs to files."""

from __future__ import annotations

import json
import os

import pytest

from scaling.results import Store

LONGCOT = {"environment": "longcot", "context_size": None, "state_size": None, "head": None, "carryover": None}


@pytest.fixture
def make_run(tmp_path, make_row):
    """A run of both environments at three lengths, two repeats each."""

    def make(name="runs/first", **changes):
        store = Store.create(tmp_path / name, {"config": {"model": "tiny"}})
        for environment, cost in ((LONGCOT, 2e-7), ({}, 0)):
            for tokens in (1024, 2048, 4096):
                for repeat in range(2):
                    seconds = (0.001 * tokens + cost * tokens**2) * (1 + repeat / 100)
                    cell = {"cell_id": f"{len(environment)}n{tokens}", "repeat": repeat, "mean_thinking_tokens": tokens}
                    store.append(make_row(**environment, **cell, device_seconds_per_trace=seconds, **changes))
        return store.path

    return make


def test_a_run_s_report_lies_in_its_directory(cli, make_run):
    run = make_run()
    ran = cli("report", run)
    assert ran.code == 0
    page, headline, *_ = ran.out.splitlines()
    assert page == str(run / "report" / "index.html")
    assert headline.startswith("At 4k thinking tokens LongCoT costs 1.82 times what Delethink C=1k m=512 costs")
    assert len(Store.open(run).frame()) == 12  # the report inside does not disturb the run
    assert cli("report", run).code == 0  # and is replaced when asked for again


def test_the_newest_run_is_the_default(cli, make_run, tmp_path, monkeypatch):
    old, new = make_run("runs/old"), make_run("runs/new")
    os.utime(old / "manifest.json", (1, 1))
    monkeypatch.chdir(tmp_path)
    assert cli("report").code == 0
    assert (new / "report" / "report.md").exists()
    assert not (old / "report").exists()


def test_several_runs_make_one_report_beside_the_first(cli, make_run):
    first, second = make_run(), make_run("runs/second", model="other")
    ran = cli("report", first, second, first)
    assert ran.code == 0
    page = (first.parent / "report" / "index.html").read_text()
    assert ">first<" in page
    assert ">second<" in page
    rows = (first.parent / "report" / "rows.csv").read_text().splitlines()
    assert len(rows) == 1 + 24


def test_equal_runs_pool_their_repeats(cli, make_run, tmp_path):
    out = tmp_path / "out"
    ran = cli("report", make_run(), make_run("runs/second"), "--out", out, "--json")
    (setting,) = json.loads(ran.out)["settings"]
    assert setting["ratios"][0]["pairs"] == 4


def test_json_lists_every_file_and_the_headline_numbers(cli, make_run, tmp_path):
    out = tmp_path / "out"
    ran = cli("report", make_run(), "--out", out, "--json")
    told = json.loads(ran.out)
    assert told["page"] == str(out / "index.html")
    assert sorted(told["files"]) == sorted(str(path) for path in out.rglob("*") if path.is_file())
    ratio = told["settings"][0]["ratios"][0]
    assert (ratio["thinking_tokens"], ratio["pairs"]) == (4096, 2)
    assert ratio["ratio"] == pytest.approx(1.8192)
    assert told["headline"]


def test_a_run_whose_cells_all_failed_still_has_a_page(cli, make_run):
    nothing = dict.fromkeys(("wall_seconds", "prefill_seconds", "decode_seconds", "tokens_per_second"))
    run = make_run(status="oom", reason="2 GiB of <KV> are full", seconds_valid=False, **nothing)
    ran = cli("report", run)
    assert ran.code == 0
    assert "No repeat finished" in ran.out
    assert "no law was fitted" in ran.err
    assert "2 GiB of &lt;KV&gt; are full" in (run / "report" / "index.html").read_text()


def test_a_run_without_rows_has_a_page_that_says_so(cli, tmp_path):
    run = Store.create(tmp_path / "empty", {}).path
    ran = cli("report", run)
    assert ran.code == 0
    assert "no rows yet" in ran.out


def test_bad_input_is_one_line_and_writes_nothing(cli, make_run, tmp_path):
    run = make_run()
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        ([tmp_path / "nowhere"], "no run at"),
        ([tmp_path], "is not a run"),
        ([run, tmp_path / "file"], "is a file"),
        ([run, "--out", tmp_path / "file"], "give a directory"),
        ([run, "--ot", "x"], "--out"),
    ):
        ran = cli("report", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
        assert ran.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
