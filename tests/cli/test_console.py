"""What commands print: JSON alone on stdout, everything said on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaling.cli.console import print_json, say, visible, warn
from scaling.lengths import parse_lengths
from scaling.results import Row


def test_json_goes_alone_to_stdout_with_its_schema_version(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"lengths": parse_lengths("1k,2k"), "path": Path("runs/first"), "text": "\x1b[31m"})
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "schema_version": "1.0",
        "lengths": [1024, 2048],
        "path": "runs/first",
        "text": "\x1b[31m",
    }
    assert "\x1b" not in captured.out
    assert captured.err == ""


def test_json_takes_numpy_values_and_rows(capsys: pytest.CaptureFixture[str], make_row: Callable[..., Row]) -> None:
    print_json({"mean": np.float32(0.5), "points": np.arange(3), "row": make_row(repeat=7)})
    printed = json.loads(capsys.readouterr().out)
    assert (printed["mean"], printed["points"], printed["row"]["repeat"]) == (0.5, [0, 1, 2], 7)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan(value: float) -> None:
    with pytest.raises(ValueError):
        print_json({"value": value})


def test_json_of_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        print_json({"value": object()})


def test_remarks_go_to_stderr_as_they_are_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    long = "[bold] is no markup here " * 10
    say(long)
    warn(long)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"{long}\nscaling: warning: {long}\n"


def test_nothing_that_is_said_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("ev\x1b[2Jil\n")
    warn("\x9b2J \u202e \udcff")
    assert capsys.readouterr().err == "ev\\x1b[2Jil\\n\nscaling: warning: \\x9b2J \\u202e \\udcff\n"


def test_words_of_any_language_are_visible_as_they_are() -> None:
    assert visible("8 × H100, 95\u202f%, größer 長い") == "8 × H100, 95\u202f%, größer 長い"
