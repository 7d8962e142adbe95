"""A run on a server as a user meets it: what is recorded of it, what is not claimed, and what is refused."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from scaling.results import Store

pytest.importorskip("httpx")

SMALL = ["--context-size", "32", "--state-size", "16", "--head", "4", "--prompt-tokens", "8", "--lengths", "32,64"]
KEY = "sk-a-secret-of-mine"


@pytest.fixture
def here(tmp_path, monkeypatch, chat_model):
    """A directory with `model`, of which the server's user has the config and the tokenizer alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (tmp_path / "model").mkdir()
    for file in chat_model.iterdir():
        if file.suffix == ".json":
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path


def ran(cli, server, *arguments):
    options = ["--engine", "openai", "--base-url", server.url, "--model", "model", "--concurrency", "4", *SMALL]
    return cli("run", *options, "--repeats", "2", *arguments)


def files_of(run):
    return b"".join(file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file())


def test_rows_say_what_the_server_did_and_claim_nothing_that_cannot_be_seen(cli, here, completions_server):
    with completions_server.CompletionsServer() as server:
        done = ran(cli, server, "--out", "r", "--devices", "8")
    assert done.code == 0, done.err
    assert "cannot be foreseen" in done.err
    frame = Store.open(here / "r").frame()
    assert len(frame) == 2 * 2 * 2
    assert (frame["actual_thinking_tokens"] == frame["mean_thinking_tokens"]).all()
    assert set(frame["device"]) == {"vllm 0.0.test on 8 devices"}
    assert (frame["device_seconds_per_trace"] == frame["wall_seconds"] * 8 / 4).all()
    assert frame["seconds_valid"].all()
    assert (frame["flops"] > 0).all()
    unseen = ["energy_joules", "peak_memory_bytes", "peak_kv_bytes", "prefill_seconds", "decode_seconds"]
    unseen += ["concurrency_mean", "preemptions", "prefill_cached_tokens", "drifted_tokens"]
    assert frame[unseen].isna().all(axis=None)
    assert set(frame["energy_reason"]) == {"served: not seen from here"}
    manifest = Store.open(here / "r").manifest
    assert manifest["served"]["base_url"] == server.url
    assert manifest["served"]["dialect"]["token_prompts"]
    assert manifest["model"]["weights"] == "served"
    assert manifest["machine"] == {}
    assert manifest["fingerprint"]["software"]["server"]["version"] == "0.0.test"


def test_rows_say_how_the_server_was_said_to_use_its_devices(cli, here, completions_server):
    with completions_server.CompletionsServer() as server:
        done = ran(cli, server, "--out", "r", "--mode", "longcot", "--tensor-parallel", "2", "--data-parallel", "4")
    assert done.code == 0, done.err
    frame = Store.open(here / "r").frame()
    assert set(frame["tensor_parallel"]) == {2}
    assert set(frame["data_parallel"]) == {4}
    assert set(frame["devices"]) == {8}
    assert (frame["device_seconds_per_trace"] == frame["wall_seconds"] * 8 / 4).all()


@pytest.mark.usefixtures("here")
def test_a_run_on_a_server_is_fitted_and_reported_like_any_other(cli, completions_server):
    with completions_server.CompletionsServer() as server:
        ran(cli, server, "--out", "r", "--lengths", "16,32,64,96,128")
    assert cli("fit", "r").code == 0
    report = cli("report", "r")
    assert report.code == 0, report.err
    assert cli("plan", "--model", "tiny", "--calibrate", "r").code == 2


def test_the_key_reaches_the_server_and_no_file_or_message(cli, here, completions_server, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with completions_server.CompletionsServer(key=KEY) as server:
        done = ran(cli, server, "--out", "r", "--key-variable", "MY_KEY")
        refused = ran(cli, server, "--out", "no")
    assert done.code == 0, done.err
    assert KEY.encode() not in files_of(here / "r")
    assert KEY not in done.out + done.err + refused.err
    assert refused.code == 2
    assert "wants another API key" in refused.err


def test_a_run_goes_on_with_its_server_and_with_no_other(cli, here, completions_server):
    with completions_server.CompletionsServer() as server:
        ran(cli, server, "--out", "r")
        [gone, *_] = (here / "r").glob("*.parquet")
        gone.unlink()
        assert cli("run", "--resume", "--out", "r").code == 0
        assert len(Store.open(here / "r").frame()) == 8
        server.models = ("another",)
        moved = cli("run", "--resume", "--out", "r")
    assert moved.code == 2
    assert "another machine or with other versions" in moved.err


def test_requests_that_were_sent_again_spoil_the_seconds_and_lost_ones_the_row(cli, here, completions_server):
    def fault(body, attempt):
        if body["max_tokens"] == 32 and body["prompt"][-1] % 2:
            return "500" if attempt == 0 else None
        return "short" if body["max_tokens"] == 64 else None

    with completions_server.CompletionsServer(fault=fault) as server:
        done = ran(cli, server, "--out", "r", "--mode", "longcot")
    assert done.code == 4, done.err
    frame = Store.open(here / "r").frame().set_index("mean_thinking_tokens")
    assert not frame.loc[32, "seconds_valid"].any()
    assert frame.loc[32, "seconds_reason"].str.contains("retried").all()
    assert set(frame.loc[64, "status"]) == {"error"}
    assert "32 of 64 tokens" in frame.loc[64, "reason"].iloc[0]


def test_drift_of_a_server_of_text_is_in_the_rows(cli, here, completions_server, chat_model):
    from scaling.text import load_tokenizer

    tokenizer = load_tokenizer(chat_model)
    options = {
        "tokens": False,
        "decode": lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False),
        "encode": lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
    }
    with completions_server.CompletionsServer(**options) as server:
        done = ran(cli, server, "--out", "r", "--mode", "longcot", "--lengths", "32")
    assert done.code == 0, done.err
    assert (Store.open(here / "r").frame()["drifted_tokens"] > 0).all()


@pytest.mark.usefixtures("here")
def test_a_dry_run_asks_which_model_and_samples_nothing(cli, completions_server):
    with completions_server.CompletionsServer() as server:
        shown, told = ran(cli, server, "--dry-run"), ran(cli, server, "--dry-run", "--json")
        assert not server.bodies
    assert "unknown" in shown.out
    assert "cannot be foreseen" in shown.out
    assert json.loads(told.out)["expected_seconds"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base-url", "http://127.0.0.1:9"], "no completions server at http://127.0.0.1:9/v1"),
        ([], "give --base-url"),
        (["--base-url", "http://127.0.0.1:9", "--method", "profile"], "cannot be timed"),
        (["--base-url", "http://127.0.0.1:9", "--phase", "update"], "rollouts alone"),
        (["--base-url", "http://127.0.0.1:9", "--kv-memory", "1g"], "--kv-memory"),
        (["--base-url", "http://127.0.0.1:9", "--gpu", "h100"], "--gpu"),
        (["--base-url", "http://127.0.0.1:9", "--deadline", "0"], "deadline"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_a_server_cannot_do_is_one_line_and_exit_2(cli, arguments, said):
    done = cli("run", "--engine", "openai", "--model", "model", *SMALL, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not os.path.exists("runs")  # noqa: PTH110


@pytest.mark.usefixtures("here")
def test_a_length_that_the_server_does_not_take_is_refused_before_anything_is_sampled(cli, completions_server):
    with completions_server.CompletionsServer(max_length=60) as server:
        done = ran(cli, server, "--out", "r")
        assert not server.bodies
    assert done.code == 2
    assert "served up to 60" in done.err


@pytest.mark.usefixtures("here")
def test_a_server_thinks_about_real_questions(cli, completions_server):
    pytest.importorskip("reasoning_gym")
    arguments = ["--task", "gcd", "--problems", "2", "--context-size", "32", "--head", "4", "--mode", "delethink"]
    with completions_server.CompletionsServer() as server:
        done = cli("trace", "--engine", "openai", "--base-url", server.url, "--model", "model", *arguments, "--json")
    assert done.code == 0, done.err
    traces = json.loads(done.out)["traces"]
    assert len(traces) == 2
    assert traces[0]["model"]["weights"] == "served"
    first = traces[0]["chunks"][0]
    body = next(body for body in server.bodies if body["prompt"] == first["prompt"])
    assert first["response"] == completions_server.response_to(first["prompt"], 32, body["seed"])
    refused = cli("trace", "--engine", "openai", "--model", "model", *arguments)
    assert refused.code == 2
    assert "--base-url" in refused.err


@pytest.mark.usefixtures("here")
def test_a_server_of_text_is_remarked_and_its_drift_told(cli, completions_server):
    pytest.importorskip("reasoning_gym")
    with completions_server.CompletionsServer(tokens=False) as server:
        arguments = ["--task", "gcd", "--problems", "2", "--context-size", "32", "--head", "4", "--mode", "delethink"]
        done = cli("trace", "--engine", "openai", "--base-url", server.url, "--model", "model", *arguments)
    assert done.code == 0, done.err
    assert "speaks text" in done.err
    assert re.search(r"\d+ of \d+ tokens came back from the server's text as others", done.err)


def test_the_commands_of_the_engines_page_plan_as_they_stand(cli, completions_server):
    page = (Path(__file__).parents[2] / "docs/engines.md").read_text()
    commands = re.findall(r"^scaling run (.*--engine openai .*)$", page, re.MULTILINE)
    assert len(commands) == 3
    with completions_server.CompletionsServer() as server:
        for command in commands:
            words = shlex.split(re.sub(r"http://\S+", server.url, command))
            assert cli("run", *words, "--dry-run").code == 0, command
