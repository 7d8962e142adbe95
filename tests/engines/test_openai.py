"""The engine of a completions server elsewhere: what it asks for, and that no misbehaviour loses or doubles a trace."""

import math
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest

from scaling.engines.base import Request
from scaling.engines.openai import OpenAIEngine
from scaling.engines.replies import Reply, Retry
from scaling.errors import MemoryLimitError, UsageError
from scaling.rollout import rollout
from scaling.text import load_tokenizer
from scaling.thinking import Delethink, LongCoT

pytest.importorskip("httpx")

VOCABULARY = 258
REQUEST = Request([7, 8, 9], max_tokens=12, ignore_eos=True, seed=3)


@pytest.fixture
def serve(completions_server):
    """Starts a server, and an engine on it: `serve(server options, engine options)`."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(server=None, **engine):
            running = stack.enter_context(completions_server.CompletionsServer(**(server or {})))
            options = {"vocabulary": VOCABULARY, "backoff": 0.01, "patience": 10.0, "deadline": 60.0, **engine}
            connected = OpenAIEngine(running.url, **options)
            stack.callback(connected.close)
            return running, connected

        yield start


def only(first):
    """A fault of the first tries alone, once the engine has found out what the server understands."""
    return lambda body, attempt: first[attempt] if body["max_tokens"] > 2 and attempt < len(first) else None


def run(engine, *requests):
    """All requests at once, to the end, in order."""
    ids = [engine.submit(request) for request in requests]
    done = {}
    while len(done) < len(ids):
        for completion in engine.step():
            assert completion.id not in done
            done[completion.id] = completion
    return [done[id] for id in ids]


def test_a_response_is_the_servers_tokens_with_times_and_counts(serve, completions_server):
    _, engine = serve()
    [done] = run(engine, REQUEST)
    assert done.tokens == completions_server.response_to(REQUEST.prompt, 12, 3)
    assert (done.finish, done.computed, done.cached, done.error) == ("length", 3, 0, None)
    assert done.submitted < done.first_token <= done.last_token <= engine.now()
    assert (engine.stats().prefill_tokens, engine.stats().decode_tokens) == (3, 11)
    assert engine.dialect.token_prompts
    assert engine.dialect.response_ids == "token_ids"
    assert engine.record()["version"] == "0.0.test"


def test_the_request_says_everything_that_decides_the_sample(serve):
    server, engine = serve({"fault": only(["stop"])}, eos=(1,))
    [done] = run(engine, Request([5], 8, temperature=0.6, top_p=0.9, stop=(2,), seed=2**40 + 5))
    assert done.finish == "stop"
    said = server.bodies[-1]
    assert (said["temperature"], said["top_p"], said["seed"], said["max_tokens"]) == (0.6, 0.9, 5, 8)
    assert said["stop_token_ids"] == [1, 2]
    assert not said["ignore_eos"]
    assert (said["top_k"], said["min_p"], said["repetition_penalty"]) == (-1, 0.0, 1.0)


@pytest.mark.parametrize(
    "fault",
    ["429", "429 after 0", "429 after Wed, 21 Oct 2015 07:28:00 GMT", "500", "503", "truncated", "cut", "garbage",
     "nonsense", "stream error", "html"],
)  # fmt: skip
def test_what_may_pass_is_tried_again_and_nothing_of_the_failed_try_is_kept(serve, completions_server, fault):
    server, engine = serve({"fault": only([fault, fault])})
    [done] = run(engine, REQUEST)
    assert done.tokens == completions_server.response_to(REQUEST.prompt, 12, 3)
    assert engine.stats().decode_tokens == 11
    assert engine.stats().retries == 2
    assert max(server.attempts.values()) == 3


def test_a_server_that_hangs_is_asked_again(serve):
    _, engine = serve({"fault": only(["hang"])}, patience=0.2)
    assert run(engine, REQUEST)[0].finish == "length"


def test_a_slow_server_is_waited_for(serve):
    _, engine = serve({"fault": only(["drip"])}, patience=0.6)
    assert run(engine, REQUEST)[0].finish == "length"
    assert engine.stats().retries == 0


def test_a_deadline_ends_a_request_however_often_it_was_tried(serve):
    _, engine = serve({"fault": only(["hang"] * 99)}, patience=0.3, deadline=1.5, tries=99)
    started = time.perf_counter()
    [done] = run(engine, REQUEST)
    assert time.perf_counter() - started < 5
    assert done.finish == "error"
    assert done.tokens == []
    assert "1.5 s" in done.error
    assert "silence" in done.error


def test_retry_after_is_honoured_and_one_past_the_deadline_is_given_up(serve):
    _, engine = serve({"fault": only(["429 after 0.5"])})
    started = time.perf_counter()
    assert run(engine, REQUEST)[0].finish == "length"
    assert time.perf_counter() - started > 0.5
    _, engine = serve({"fault": only(["429 after 3600"])})
    started = time.perf_counter()
    assert "429" in run(engine, REQUEST)[0].error
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("400", "told to say 400"),
        ("short", "6 of 12"),
        ("capped", "6 of 12"),
        ("long", "13 tokens"),
        ("foreign", "258"),
    ],
)
def test_what_will_not_pass_fails_the_request_at_once(serve, fault, said):
    _, engine = serve({"fault": only([fault] * 9)})
    [done, other] = run(engine, REQUEST, Request([1], 2, ignore_eos=True))
    assert done.finish == "error"
    assert said in done.error
    assert "\n" not in done.error
    assert engine.stats().retries == 0
    assert other.finish == "length"


def test_a_response_that_the_server_cut_or_went_on_with_is_none(serve, completions_server):
    """A cap of the server's own, and ids that were to end a response and did not, make other lengths than asked for."""
    free = replace(REQUEST, ignore_eos=False)
    _, engine = serve({"fault": only(["capped"])})
    [done] = run(engine, free)
    assert (done.finish, done.tokens) == ("error", [])
    assert "cut the response at 6 of 12 tokens" in done.error
    fifth, last = (completions_server.response_to(REQUEST.prompt, 12, 3)[at] for at in (4, 11))
    _, engine = serve()
    passed, ended, fixed = run(engine, replace(free, stop=(fifth,)), replace(free, stop=(last,)), REQUEST)
    assert f"went on behind token {fifth}" in passed.error
    assert (ended.finish, len(ended.tokens)) == ("length", 12)
    assert fixed.error is None


def test_hostile_text_changes_nothing_where_token_ids_come(serve, completions_server):
    _, engine = serve({"fault": only(["hostile"])})
    [done] = run(engine, REQUEST)
    assert done.tokens == completions_server.response_to(REQUEST.prompt, 12, 3)


def test_a_thousand_traces_meet_every_fault_and_each_ends_once(serve, completions_server):
    passing = ["429", "429 after 0", "500", "truncated", "cut", "garbage", "nonsense", "drip"]
    faults = [*[None] * 40, *passing, "400", "short"]
    chance = random.Random(1)
    hung = iter([True] * 5)

    def fault(body, _attempt):
        if body["max_tokens"] <= 2:
            return None
        return "hang" if chance.random() < 0.01 and next(hung, False) else chance.choice(faults)

    server, engine = serve({"fault": fault}, max_sequences=64, patience=2.0)
    environment = Delethink(context_size=8, state_size=4, iterations=2, head=2)
    queries = [[3 + i % 200, 3 + i // 200, 9] for i in range(1000)]
    ended = Counter()
    traces = rollout(
        engine, environment, queries, lengths=[[8, 4]] * 1000, concurrency=64,
        on_trace=lambda trace: ended.update([trace.index]),
    )  # fmt: skip
    assert ended == Counter(range(1000))
    whole = [trace for trace in traces if trace.error is None]
    assert 800 < len(whole) < 1000
    assert {trace.error.split(":")[0].split(" after")[0] for trace in traces if trace.error} == {
        "HTTP 400",
        "the server stopped",
    }
    for trace in whole:
        assert trace.response_lengths == [8, 4]
    seeds = {tuple(body["prompt"]): body["seed"] for body in server.bodies}
    for chunk in (chunk for trace in traces for chunk in trace.chunks):
        expected = completions_server.response_to(chunk.prompt, len(chunk.response), seeds[chunk.prompt])
        assert list(chunk.response) == expected
    assert server.most_flying <= 64
    assert engine.stats().decode_tokens == sum(n - 1 for trace in traces for n in trace.response_lengths)
    assert engine.step() == []


def test_an_aborted_request_comes_back_with_what_it_has_and_is_hung_up(serve):
    _, engine = serve({"fault": only(["hang"] * 9)}, patience=60)
    ids = [engine.submit(replace(REQUEST, seed=seed)) for seed in range(3)]
    engine.abort(ids[1])
    engine.abort(99)
    [done] = engine.step()
    assert (done.id, done.finish, done.tokens) == (ids[1], "abort", [])
    assert engine.stats().running == 2


def test_logprobs_are_kept_only_where_they_are_of_the_sampling_distribution(serve):
    half = replace(REQUEST, temperature=0.5)
    _, engine = serve({"processed": True}, logprobs=True)
    assert engine.dialect.logprobs == "processed"
    assert run(engine, half)[0].logprobs == [-0.75] * 12
    _, engine = serve({"processed": False}, logprobs=True)
    assert engine.dialect.logprobs == "raw"
    raw, plain, greedy = run(engine, half, REQUEST, replace(REQUEST, temperature=0.0))
    assert all(map(math.isnan, raw.logprobs))
    assert plain.logprobs == [-1.5] * 12
    assert greedy.logprobs == [0.0] * 12
    _, engine = serve()
    assert all(map(math.isnan, run(engine, REQUEST)[0].logprobs))


def test_ids_are_read_from_logprobs_where_they_come_in_no_other_way(serve, completions_server):
    server, engine = serve({"names_ids": False})
    assert engine.dialect.response_ids == "logprobs"
    [done] = run(engine, REQUEST)
    assert done.tokens == completions_server.response_to(REQUEST.prompt, 12, 3)
    assert server.bodies[-1]["logprobs"] == 1


def test_logprobs_in_the_form_of_chat_are_read_too():
    reply = Reply()
    top = [{"id": 5, "logprob": -0.25}, {"id": 7, "logprob": -2.0}]
    said = {"content": [{"id": 7, "logprob": -2.0, "top_logprobs": top}, {"id": 5, "logprob": -0.5}]}
    reply.take({"choices": [{"index": 0, "text": "ab", "logprobs": said, "finish_reason": "length"}]})
    assert (reply.tokens, reply.logprobs, reply.likeliest) == ([7, 5], [-2.0, -0.5], [-0.25, -0.5])


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"index": 1, "text": "second"}]},
        {"choices": 3},
        {"choices": ["text"]},
        {"choices": [{"text": 3}]},
        {"choices": [{"text": "", "token_ids": [1.5]}]},
        {"choices": [{"text": "", "token_ids": [True]}]},
        {"choices": [{"text": "", "token_ids": [-1]}]},
        {"choices": [{"text": "", "logprobs": {"tokens": ["token_id:x"]}}]},
        {"choices": [], "usage": {"prompt_tokens": "many"}},
        {"choices": [], "usage": {}},
    ],
)
def test_an_event_that_no_server_should_send_is_a_failed_try(event):
    with pytest.raises(Retry, match="makes no sense"):
        Reply().take(event)


def test_a_server_of_text_is_told_and_read_as_text_and_the_drift_is_counted(serve, chat_model):
    tokenizer = load_tokenizer(chat_model)
    decode = lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False)  # noqa: E731
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    options = {"tokens": False, "extras": False, "decode": decode, "encode": encode}
    server, engine = serve(options, tokenizer=tokenizer)
    assert not engine.dialect.token_prompts
    assert engine.dialect.response_ids == "text"
    prompt = encode("think about it")
    [done] = run(engine, Request(prompt, 10, seed=1))
    assert server.bodies[-1]["prompt"] == "think about it"
    assert done.finish == "length"
    assert all(map(math.isnan, done.logprobs))
    assert engine.stats().retokenised_tokens == len(prompt) + len(done.tokens)
    before = engine.stats().drifted_tokens
    half_a_letter = encode("é")[:1]
    run(engine, Request([*prompt, *half_a_letter], 10, seed=1))
    assert engine.stats().drifted_tokens > before


def test_tokens_that_a_server_of_text_puts_in_are_drift_and_those_that_it_sampled_are_counted(serve, chat_model):
    tokenizer = load_tokenizer(chat_model)
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    options = {"tokens": False, "extras": False, "encode": encode, "decode": lambda ids: "é" * len(ids)}
    drifted = []
    for begins in (0, 1):
        _, engine = serve({**options, "begins": begins}, tokenizer=tokenizer)
        [done] = run(engine, Request(encode("think about it"), 10, seed=1))
        assert len(done.tokens) == 20  # the letter is two tokens to us and was one to the server
        assert engine.stats().decode_tokens == 9
        drifted.append(engine.stats().drifted_tokens)
    assert drifted[1] == drifted[0] + 1


def test_a_server_that_takes_no_ends_is_not_asked_for_them(serve, chat_model):
    tokenizer = load_tokenizer(chat_model)
    _, engine = serve({"tokens": False, "extras": False}, tokenizer=tokenizer)
    with pytest.raises(UsageError, match="takes no token ids that end a response"):
        engine.submit(Request([70, 71], 10, stop=(72,)))
    assert run(engine, Request([70, 71], 10, stop=(72,), ignore_eos=True))[0].finish == "length"


def test_hostile_text_from_a_server_of_text_becomes_tokens_all_the_same(serve, chat_model):
    tokenizer = load_tokenizer(chat_model)
    _, engine = serve({"tokens": False, "fault": only(["hostile"])}, tokenizer=tokenizer)
    [done] = run(engine, Request([70, 71], 10))
    assert done.finish == "length"
    assert all(0 <= token < VOCABULARY for token in done.tokens)


def test_a_server_of_text_cannot_be_used_without_a_tokenizer(completions_server):
    with (
        completions_server.CompletionsServer(tokens=False) as server,
        pytest.raises(UsageError, match="needs the model's tokenizer"),
    ):
        OpenAIEngine(server.url, vocabulary=VOCABULARY, backoff=0.01)


def test_nothing_at_the_address_is_one_line_at_once():
    started = time.perf_counter()
    with pytest.raises(UsageError, match="no completions server at http") as error:
        OpenAIEngine("http://127.0.0.1:9", vocabulary=VOCABULARY)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://x/v1", "http://", "http://u:secret@x/v1", "http://x:port"]
)
def test_an_address_that_is_none_or_holds_a_password_is_refused_without_repeating_it(url):
    with pytest.raises(UsageError, match="expected one such as") as error:
        OpenAIEngine(url, vocabulary=VOCABULARY)
    assert "secret" not in str(error.value)


def test_of_several_models_one_must_be_named(completions_server):
    with completions_server.CompletionsServer(models=("small", "large")) as server:
        with pytest.raises(UsageError, match="serves 2 models"):
            OpenAIEngine(server.url, vocabulary=VOCABULARY)
        with pytest.raises(UsageError, match="did you mean small"):
            OpenAIEngine(server.url, vocabulary=VOCABULARY, model="smal")
        engine = OpenAIEngine(server.url, vocabulary=VOCABULARY, model="large")
        engine.close()
        assert {body["model"] for body in server.bodies} == {"large"}


def test_the_key_goes_to_the_server_and_into_no_message(serve, completions_server, caplog):
    caplog.set_level("DEBUG")
    key = "sk-very-secret-key"
    refused = only(["401"])
    server, engine = serve({"key": key, "fault": refused}, key=key)
    [done] = run(engine, REQUEST)
    assert "401" in done.error
    assert key not in f"{done} {engine.record()} {caplog.text}"
    with (
        completions_server.CompletionsServer(key="another") as other,
        pytest.raises(UsageError, match="wants another API key") as error,
    ):
        OpenAIEngine(other.url, vocabulary=VOCABULARY, key=key)
    assert key not in str(error.value)
    assert "***" in str(error.value)
    with pytest.raises(UsageError, match="no HTTP header") as error:
        OpenAIEngine(server.url, vocabulary=VOCABULARY, key="sécret\n")
    assert "cret" not in str(error.value).replace("secret", "")


def test_what_a_server_cannot_do_is_refused_in_a_line(serve):
    _, engine = serve({"max_length": 100})
    with pytest.raises(UsageError, match="keeps the weights"):
        engine.load_weights([], 1)
    with pytest.raises(UsageError, match="cannot sleep"):
        engine.sleep()
    with pytest.raises(MemoryLimitError, match="at most 100"):
        engine.submit(Request([1] * 90, max_tokens=11))
    with pytest.raises(UsageError, match="vocabulary"):
        engine.submit(Request([VOCABULARY], max_tokens=1))


def test_an_interrupted_rollout_leaves_nothing_in_flight(serve):
    _, engine = serve({"fault": only(["hang"] * 9)}, patience=60)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(engine, LongCoT(16), [[5], [6]], lengths=[[16], [16]], on_step=interrupt)
    assert engine.stats().running == 0


def test_without_httpx_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from scaling.engines.openai import OpenAIEngine\n"
        "from scaling.errors import UsageError\n"
        "try: OpenAIEngine('http://127.0.0.1:9', vocabulary=9)\n"
        "except UsageError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'thinking-cost[openai]'" in done.stdout
    assert not done.stderr
