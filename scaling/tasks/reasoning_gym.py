"""Any dataset of reasoning-gym as a task; it runs in a process of its own, which hostile answers may kill."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from scaling.errors import ScalingError, UsageError, unknown
from scaling.tasks.base import Problem, Verdict

START_SECONDS = 120.0
VERIFY_SECONDS = 5.0
PROBLEMS = 10_000  # the size datasets are made with: most make problems when asked, a few make them all at once
LONGEST_ANSWER = 10_000  # characters; no right answer is longer, and a verifier may take quadratic time


class ReasoningGym:
    """One dataset of reasoning-gym, by its name and its own parameters, judged by its own verifier.

    Problem i depends on the parameters, the seed and i alone.
    """

    def __init__(
        self, name: str, parameters: dict[str, str] | None = None, *, seed: int = 0, seconds: float = VERIFY_SECONDS
    ) -> None:
        """`parameters`: the dataset's configuration, values as text. `seconds`: time limit of one verification.

        Raises `UsageError` for an unknown dataset or parameter, a value it refuses, or where the extra is missing.
        """
        if find_spec("reasoning_gym") is None:
            raise UsageError(
                f"task {name!r} needs reasoning-gym; install the extra: pip install 'thinking-cost[tasks]'"
            )
        self.name = name
        self.seed = seed
        self._seconds = seconds
        self._given = parameters or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._parameters = self._ask({"do": "parameters"}, START_SECONDS)["parameters"]

    def parameters(self) -> dict[str, Any]:
        return {"task": self.name, "seed": self.seed, **self._parameters}

    def problems(self, count: int) -> list[Problem]:
        if count > PROBLEMS:
            raise UsageError(
                f"{count} problems asked of {self.name}; a seed gives at most {PROBLEMS}, try another seed too"
            )
        return [self._problem(index) for index in range(count)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        if answer is None:
            return Verdict(0.0)
        if len(answer) > LONGEST_ANSWER:
            return Verdict(0.0, f"the answer has {len(answer)} characters, more than {LONGEST_ANSWER}")
        try:
            request = {"do": "score", "index": problem.meta["index"], "answer": answer, "seconds": self._seconds}
            reply = self._ask(request, self._seconds)
        except _WorkerDiedError as error:
            return Verdict(0.0, str(error))
        return Verdict(reply["score"], reply["error"])

    def score(self, problem: Problem, answer: str | None) -> float:
        return self.verify(problem, answer).score

    def close(self) -> None:
        """Ends the verifier's process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _problem(self, index: int) -> Problem:
        reply = self._ask({"do": "problem", "index": index}, START_SECONDS)
        meta = {"index": index, "metadata": reply["metadata"]}
        return Problem(f"{self.name}-{self.seed}-{index}", reply["question"], reply["answer"], meta)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """One request to the process, which is started where there is none; raises what it answers as an error."""
        if self._process is None:
            self._start()
        reply = self._exchange(request, seconds)
        if "usage" in reply:
            self.close()
            if "known" in reply:
                raise unknown(reply["usage"], reply["name"], reply["known"])
            raise UsageError(reply["usage"])
        return reply

    def _start(self) -> None:
        # A fixed hash seed, because some datasets draw from sets: their problems would change from run to run.
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "scaling.tasks.gym_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for us; it ends with us, when its stdin does
        )
        self._buffer = b""
        setup = {"do": "setup", "name": self.name, "seed": self.seed, "size": PROBLEMS, "parameters": self._given}
        self._ask(setup, START_SECONDS)

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        with suppress(BrokenPipeError):  # it is gone then; reading says so
            process.stdin.write(json.dumps(request).encode() + b"\n")
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([process.stdout], [], [], left)[0]
            if not ready:
                self.close()
                raise _WorkerDiedError(f"{self.name} took more than {seconds:g} s and was stopped")
            received = os.read(process.stdout.fileno(), 1 << 16)
            if not received:
                self.close()
                raise _WorkerDiedError(f"the process of {self.name} crashed")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line, parse_constant=str)  # metadata may hold infinities
        return reply


class _WorkerDiedError(ScalingError):
    """The process was killed or died; the next request starts another."""
