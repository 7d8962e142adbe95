"""Asking arms the same problems: every trace kept as it ends, and the same ones whatever came between."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scaling.errors import StoreError
from scaling.measure.sampler import EngineChoice, open_engine
from scaling.models import resolve
from scaling.results import Store
from scaling.rollout import Sampling
from scaling.tasks import Problem, Verdict
from scaling.tasks.walk import Walk
from scaling.thinking import LongCoT
from studies.arm_costs import measured
from studies.asking import Arm, Progress, Questions, ask, begin, frame, records

Make = Callable[..., Any]
PROGRAM = Path(__file__).with_name("asked.py")


def test_every_arm_is_asked_every_problem_as_often_as_the_study_says(whole: Store) -> None:
    found = frame(whole)
    assert set(found.groupby(["arm", "task", "problem"]).size()) == {2}
    assert found.groupby("arm").size().to_dict() == {"longcot": 8, "delethink C=8 m=4": 8}
    assert found["run"].unique() == [whole.path.name]


def test_scores_of_all_budgets_are_those_of_the_trimmed_trace(whole: Store) -> None:
    found = frame(whole)
    assert all(list(scores) == [4, 8, 24] for scores in found["scores"])
    assert all(row["scores"][24] == row["score"] for _, row in found.iterrows())
    shorter = found[found["thinking_tokens"] <= 8]
    assert len(shorter)
    assert all(row["scores"][8] == row["score"] for _, row in shorter.iterrows())
    assert 0 < sum(scores[8] for scores in found["scores"]) <= found["score"].sum()


def test_samples_of_a_problem_differ_and_arms_share_their_seeds(asked: Any, whole: Store) -> None:
    found = asked.traces(whole)
    longcot = [found["longcot", number]["chunks"][0]["response"] for number in range(8)]
    delethink = [found["delethink C=8 m=4", number]["chunks"][0]["response"] for number in range(8)]
    assert longcot[:4] != longcot[4:]
    assert [response[:8] for response in longcot] == delethink


def test_an_arm_leaves_one_row_of_what_it_cost(whole: Store) -> None:
    rows = whole.frame()
    assert list(rows["environment"].sort_values()) == ["delethink", "longcot"]
    assert set(rows["phase"]) == {"rollout"}
    assert set(rows["method"]) == {"full"}
    assert set(rows["traces"]) == {8}
    for _, row in rows.iterrows():
        mine = frame(whole)
        mine = mine[mine["environment"] == row["environment"]]
        assert row["actual_thinking_tokens"] == mine["thinking_tokens"].mean()
        assert row["chunks"] == mine["chunks"].sum()
        assert row["device_seconds_per_trace"] == pytest.approx(row["wall_seconds"] / 8)
        assert mine["seconds"].max() <= row["wall_seconds"] <= mine["seconds"].sum()


def test_a_study_that_is_done_samples_nothing_and_needs_no_engine(walkers: Make, whole: Store) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError

    before = {path: path.read_bytes() for path in whole.path.rglob("*") if path.is_file()}
    outcomes = ask(whole, walkers(), open_engine=never)
    assert [(outcome.traces, outcome.failed, outcome.remarks) for outcome in outcomes] == [(8, 0, [])] * 2
    assert {path: path.read_bytes() for path in whole.path.rglob("*") if path.is_file()} == before


def test_one_engine_serves_all_arms_of_a_model(walkers: Make, walker: Path, tmp_path: Path) -> None:
    opened = []
    study = walkers()
    other = Path(shutil.copytree(walker, tmp_path / "other"))
    longcot, delethink = study.arms
    between = replace(longcot, label="other", source=resolve(str(other), weights=True))
    study = replace(study, arms=[longcot, between, delethink])

    def once(source: Any, environments: Any, query: int) -> Any:
        opened.append((source.name, [environment.name for environment in environments]))
        return open_engine(study.engine, source, environments, query)

    outcomes = ask(begin(tmp_path / "run", study), study, open_engine=once)
    assert opened == [("walker", ["longcot", "delethink"]), ("other", ["longcot"])]
    assert [outcome.arm for outcome in outcomes] == ["longcot", "other", "delethink C=8 m=4"]


def test_progress_counts_up_to_every_trace_of_every_arm(walkers: Make, tmp_path: Path) -> None:
    seen: list[Progress] = []
    study = walkers()
    ask(begin(tmp_path / "run", study), study, observe=seen.append)
    assert [(p.arms_done, p.done) for p in seen] == [(arm, done) for arm in range(2) for done in range(9)]
    assert {(p.arms, p.total) for p in seen} == {(2, 8)}
    assert [p.record is None for p in seen].count(True) == 2


class Patient:
    """The walk, whose verifier waits for a sign."""

    def __init__(self, walk: Any) -> None:
        self._walk, self.sign = walk, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._walk, name)

    def verify(self, problem: Problem, answer: str | None) -> Any:
        assert self.sign.wait(60), "the engine waits for the verifier"
        return self._walk.verify(problem, answer)


class Signalling:
    """An engine that gives the sign once it has finished every request that it can be asked."""

    def __init__(self, engine: Any, sign: threading.Event, requests: int) -> None:
        self._engine, self._sign, self._left = engine, sign, requests

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[Any]:
        done = self._engine.step()
        self._left -= len(done)
        if self._left <= 0:
            self._sign.set()
        return done


def test_the_engine_does_not_wait_for_verdicts(walkers: Make, tmp_path: Path) -> None:
    walk = Walk(4, 0, 0, 2)
    patient = Patient(walk)
    study = walkers(questions=(Questions("walk", patient, walk.problems(4)),))
    study = replace(study, arms=study.arms[:1])
    warm_up = 1
    outcomes = ask(
        begin(tmp_path / "run", study),
        study,
        open_engine=lambda *given: Signalling(open_engine(study.engine, *given), patient.sign, warm_up + 8),
    )
    assert [outcome.traces for outcome in outcomes] == [8]


# Interruptions


def run_until(walker: Path, out: Path, lines: int, stop: signal.Signals, samples: int = 2) -> int:
    """Asks in a process of its own, which gets the signal once so many traces are written; its exit status."""
    command = [sys.executable, str(PROGRAM), str(walker), str(out), str(samples)]
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        process.send_signal(stop)
        process.communicate()
    return process.returncode


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_study_goes_on_to_the_same_traces(
    asked: Any, walkers: Make, walker: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    study = walkers(samples=20)
    whole = asked.asked_whole(tmp_path / "whole", walkers(samples=20))
    code = run_until(walker, tmp_path / "stopped", 20, stop, samples=20)
    assert code == (-signal.SIGKILL if stop == signal.SIGKILL else 130)
    store = Store.open(tmp_path / "stopped")
    saved = asked.traces(store)
    assert 20 <= len(saved) < 160
    outcomes = ask(store, study)
    assert asked.traces(store) == asked.traces(whole)
    assert [outcome.traces for outcome in outcomes] == [80, 80]
    rows = store.frame().set_index("environment")
    assert rows.loc["longcot", "seconds_reason"] == "resumed: its traces were not sampled in one go"
    assert rows.loc["longcot", ["wall_seconds", "device_seconds_per_trace"]].isna().all()
    assert rows.loc["delethink", "device_seconds_per_trace"] > 0


def test_an_arm_that_was_not_sampled_as_the_run_began_has_no_seconds(walkers: Make, tmp_path: Path) -> None:
    study = walkers()
    slower = replace(study, engine=replace(study.engine, concurrency=1))
    store = begin(tmp_path / "run", study)
    ask(store, slower)
    ask(store, study)
    rows = store.frame()
    assert list(rows["seconds_reason"]) == ["sampled with another concurrency than its run began with"] * 2
    assert rows["wall_seconds"].isna().all()
    assert (rows["flops"] > 0).all()


def test_a_line_that_a_kill_tore_is_asked_again(asked: Any, walkers: Make, whole: Store, tmp_path: Path) -> None:
    study = walkers()
    store = asked.asked_whole(tmp_path / "torn", walkers())
    path = store.path / store.manifest["arms"][1]["file"]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 100])
    ask(Store.open(store.path), study)
    assert asked.traces(store) == asked.traces(whole)


def test_a_full_disk_is_one_line_and_keeps_what_is_there(
    asked: Any, walkers: Make, whole: Store, tmp_path: Path
) -> None:
    study = walkers()
    store = begin(tmp_path / "full", study)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7000, limits[1]))
    try:
        with pytest.raises(
            StoreError, match=r"cannot write .*longcot\.jsonl: File too large; the traces before are kept"
        ):
            ask(store, study)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = asked.traces(store)
    assert 0 < len(kept) < 8
    assert all(asked.traces(whole)[key] == trace for key, trace in kept.items())
    ask(store, study)
    assert asked.traces(store) == asked.traces(whole)


def test_two_writers_do_not_meet(walkers: Make, tmp_path: Path) -> None:
    from scaling.traces import TraceFile

    study = walkers()
    store = begin(tmp_path / "run", study)
    with (
        TraceFile(store.path / store.manifest["arms"][0]["file"], append=True),
        pytest.raises(StoreError, match="is being written by another process"),
    ):
        ask(store, study)
    ask(store, study)


def test_a_writer_who_comes_while_another_asks_is_refused_before_it_counts_what_is_there(
    asked: Any, walkers: Make, whole: Store, tmp_path: Path
) -> None:
    """Else it would sample again what the other writes until its own engine is open."""
    study = walkers()
    store = begin(tmp_path / "run", study)

    def beside(*given: Any) -> Any:
        with pytest.raises(StoreError, match="is being written by another process"):
            ask(Store.open(store.path), study, open_engine=never)
        return open_engine(study.engine, *given)

    def never(*_: Any) -> Any:
        raise AssertionError

    ask(store, study, open_engine=beside)
    assert asked.traces(store) == asked.traces(whole)


def test_a_budget_smaller_than_the_warm_up_fits(walkers: Make, tmp_path: Path) -> None:
    study = walkers(budgets=(1,))
    first = replace(study.arms[0], environment=LongCoT(1))
    study = replace(study, arms=[first])
    store = begin(tmp_path / "run", study)
    ask(store, study)
    assert set(frame(store)["thinking_tokens"]) == {1}


def test_answers_that_the_verifier_gives_up_on_are_counted(walkers: Make, tmp_path: Path) -> None:
    walk = Walk(4, 0, 0, 2)

    class Weary(Walk):
        def verify(self, problem: Problem, answer: str | None) -> Verdict:
            weary = problem.id == "walk-0-2-0-1"
            return Verdict(0.0, "took more than 5 s") if weary else super().verify(problem, answer)

    study = walkers(questions=(Questions("walk", Weary(4, 0, 0, 2), walk.problems(4)),))
    outcomes = ask(begin(tmp_path / "run", study), study)
    assert outcomes[0].remarks == [
        "2 of 8 traces of 'longcot' were not judged and count as wrong; the first: took more than 5 s"
    ]


def test_a_budget_smaller_than_a_chunk_cuts_inside_it(asked: Any, walkers: Make, tmp_path: Path) -> None:
    found = frame(asked.asked_whole(tmp_path / "run", walkers(budgets=(1, 6))))
    assert all(scores[1] == 0 for scores in found["scores"])
    assert any(scores[6] == 1 for scores in found["scores"])


# What goes wrong with a model


class Failing:
    """An engine whose every request fails, as where a server refuses them."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def step(self) -> list[Any]:
        return [replace(done, finish="error", error="no such model", tokens=[]) for done in self._engine.step()]


def test_an_arm_whose_every_trace_failed_is_said_so(walkers: Make, tmp_path: Path) -> None:
    study = walkers()
    store = begin(tmp_path / "run", study)
    outcomes = ask(store, study, open_engine=lambda *given: Failing(open_engine(study.engine, *given)))
    assert outcomes[0].remarks == ["every trace of 'longcot' failed: no such model; it has no accuracy"]
    found = frame(store)
    assert len(found) == 16
    assert set(found["error"]) == {"no such model"}
    assert found["score"].isna().all()
    assert found["correct"].isna().all()
    assert list(found["scores"]) == [{}] * 16
    assert not found["ended"].any()
    rows = store.frame()
    assert set(rows["status"]) == {"error"}
    assert set(rows["reason"]) == {"all 8 traces failed: no such model"}


class FailingOnce(Failing):
    """An engine that fails the first `times` requests that end, and no other."""

    def __init__(self, engine: Any, times: int) -> None:
        super().__init__(engine)
        self._left = times

    def step(self) -> list[Any]:
        done = self._engine.step()
        bad, self._left = done[: self._left], self._left - len(done[: self._left])
        return [replace(d, finish="error", error="gone", tokens=[]) for d in bad] + done[len(bad) :]


def test_what_failed_is_asked_again(asked: Any, walkers: Make, whole: Store, tmp_path: Path) -> None:
    study = walkers()
    store = begin(tmp_path / "run", study)
    # one request of the warm-up, then three traces of the first arm
    outcomes = ask(store, study, open_engine=lambda *given: FailingOnce(open_engine(study.engine, *given), 4))
    assert [outcome.failed for outcome in outcomes] == [3, 0]
    assert measured(store)[0]["reason"] == "3 of 8 traces failed"
    counts: list[Progress] = []
    outcomes = ask(store, study, observe=counts.append)
    assert [(outcome.traces, outcome.failed) for outcome in outcomes] == [(8, 0)] * 2
    assert [p.done for p in counts if p.arm == "longcot"] == [5, 6, 7, 8]
    assert asked.traces(store) == asked.traces(whole)
    assert len(frame(store)) == 16
    first, _ = measured(store)
    assert (first["traces"], first["reason"]) == (8, "resumed: its traces were not sampled in one go")


def test_a_server_is_asked_like_any_engine_and_its_row_says_what_was_not_seen(
    walkers: Make, chat_model: Path, tmp_path: Path, completions_server: Any
) -> None:
    pytest.importorskip("httpx", reason="the extra [openai] is not installed")
    describes = Path(shutil.copytree(chat_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    with completions_server.CompletionsServer() as server:
        engine = EngineChoice("openai", concurrency=3, base_url=server.url)
        study = walkers(chat_model, engine=engine, devices=2)
        arms = [replace(arm, source=engine.source(str(describes))) for arm in study.arms]
        study = replace(study, arms=arms)
        store = begin(tmp_path / "run", study)
        outcomes = ask(store, study)
    assert [(outcome.traces, outcome.failed) for outcome in outcomes] == [(8, 0), (8, 0)]
    for _, row in store.frame().iterrows():
        assert (row["engine"], row["device"], row["devices"]) == ("openai", "server on 2 devices", 2)
        assert row["device_seconds_per_trace"] == pytest.approx(2 * row["wall_seconds"] / 8)
        assert row["memory_reason"] == row["energy_reason"] == "served: not seen from here"


class Parrot:
    """A task whose answers are whatever hostile text is, and whose verifier takes it."""

    name = "parrot"
    hostile = "\x00\x1b[2J<script>alert(1)</script>\u202eevil\u2028"

    def parameters(self) -> dict[str, Any]:
        return {"task": self.name}

    def verify(self, problem: Problem, answer: str | None) -> Any:
        from scaling.tasks import Verdict

        return Verdict(0.0)

    def score(self, problem: Problem, answer: str | None) -> float:
        return 0.0


def test_hostile_text_is_kept_as_it_is(chat_model: Path, tmp_path: Path) -> None:
    from scaling.text import Text

    hostile = Parrot.hostile
    problem = Problem(f"p{hostile}", hostile, hostile, {"difficulty": 3, "note": hostile})
    arm = Arm(f"arm {hostile}", LongCoT(40), resolve(str(chat_model), weights=True), Text(chat_model))
    study = replace(parrots(arm), questions=(Questions("parrot", Parrot(), [problem]),), budgets=(1, 40))
    store = begin(tmp_path / "run", study)
    ask(store, study)
    found = frame(store)
    assert set(found["problem"]) == {problem.id}
    assert set(found["difficulty"]) == {3.0}
    assert [path.name for path in (store.path / "traces").iterdir()] == ["01-arm-2j-script-alert-1-script-evil.jsonl"]
    (record, *_) = records(store, arm.label)
    assert record["problem"]["question"] == hostile
    assert record["chunks"][0]["text"] == arm.text.decode(record["chunks"][0]["response"])


def parrots(arm: Arm) -> Any:
    from studies.asking import Study

    walk = Walk(1, 0, 0, 2)
    return Study(
        "probe",
        (arm,),
        (Questions("walk", walk, walk.problems(1)),),
        2,
        Sampling(),
        (40,),
        EngineChoice(dtype="float32"),
    )
