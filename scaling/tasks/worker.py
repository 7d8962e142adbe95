"""A process of its own for a verifier, which hostile answers may kill: one JSON line a request, one a reply."""

from __future__ import annotations

import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from scaling.errors import ScalingError, UsageError, unknown
from scaling.tasks.base import Verdict

START_SECONDS = 120.0
VERIFY_SECONDS = 5.0
LONGEST_ANSWER = 10_000  # characters; no right answer is longer, and a verifier may take quadratic time
MEMORY_BYTES = 4 << 30


class WorkerDiedError(ScalingError):
    """The process was killed or died; the next request starts another."""


class Worker:
    """The process that runs a module's `serve`; it starts at the first request, or before, and again where it died."""

    def __init__(self, module: str, name: str, setup: Mapping[str, Any]) -> None:
        """`name`: whose verifier it is, for messages. `setup`: the first request of every process."""
        self._command = [sys.executable, "-m", module]
        self._name, self._setup = name, setup
        self.process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def start(self) -> None:
        """Starts the process now, so that what its setup says is raised here; as `ask` raises it."""
        # A fixed hash seed, because some datasets draw from sets: their problems would change from run to run.
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for us; it ends with us, when its stdin does
        )
        self._buffer = b""
        self.ask({"do": "setup", **self._setup})

    def ask(self, request: Mapping[str, Any], seconds: float = START_SECONDS) -> dict[str, Any]:
        """The reply. Raises `UsageError` where that is what it says, `WorkerDiedError` where none comes in time."""
        if self.process is None:
            self.start()
        reply = self._exchange(request, seconds)
        if "usage" in reply:
            self.close()
            if "known" in reply:
                raise unknown(reply["usage"], reply["name"], reply["known"])
            raise UsageError(reply["usage"])
        return reply

    def verify(self, answer: str | None, about: Mapping[str, Any], seconds: float) -> Verdict:
        """The verdict on an answer, which may be any text; None is no answer. `about`: the rest of the request."""
        if answer is None:
            return Verdict(0.0)
        if len(answer) > LONGEST_ANSWER:
            return Verdict(0.0, f"the answer has {len(answer)} characters, more than {LONGEST_ANSWER}")
        try:
            # A process that has to start first takes the time of starting, not that of judging.
            reply = self.ask({"do": "score", **about, "answer": answer, "seconds": seconds}, seconds)
        except WorkerDiedError as error:
            return Verdict(0.0, str(error))
        return Verdict(reply["score"], reply["error"])

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def _exchange(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        process = self.process
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
                raise WorkerDiedError(f"{self._name} took more than {seconds:g} s and was stopped")
            received = os.read(process.stdout.fileno(), 1 << 16)
            if not received:
                self.close()
                raise WorkerDiedError(f"the process of {self._name} crashed")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: dict[str, Any] = json.loads(line, parse_constant=str)  # metadata may hold infinities
        return reply


def serve(answers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """In the process: answers requests by what they ask to `do`, until stdin ends.

    Replies go where stdout went: anything else that prints there would break the protocol.
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    sys.stdout = sys.stderr
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        request = json.loads(line)
        # Should nobody be left to kill a verifier that hangs, the kernel does, even inside C code.
        signal.setitimer(signal.ITIMER_REAL, 2 * request.pop("seconds", 0.0))
        reply = answers[request.pop("do")](**request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        replies.write(json.dumps(reply, default=str, skipkeys=True) + "\n")
        replies.flush()


def score(judge: Callable[[], float]) -> dict[str, Any]:
    """In the process: the reply to a request for a score."""
    try:
        found = float(judge())
    except BaseException as error:  # whatever a text makes a verifier do
        return {"score": 0.0, "error": f"{type(error).__name__}: {error}"[:200]}
    if math.isnan(found):
        return {"score": 0.0, "error": "the verifier's score is not a number"}
    return {"score": min(max(found, 0.0), 1.0), "error": None}
