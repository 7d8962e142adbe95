"""`scaling doctor` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from scaling.cli import doctor as command
from scaling.measure import doctor
from scaling.measure.doctor import Surroundings
from scaling.measure.fingerprint import fingerprint, fingerprint_id

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return fingerprint()


@pytest.fixture
def machine(found: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, with a full disk and a package that steers the terminal."""
    around = Surroundings(False, 2**30, None, frozenset(), {"torchvision": "\x1b[2Jbroken"})
    monkeypatch.setattr(doctor, "look", lambda _: (found, around))


@pytest.mark.usefixtures("machine")
def test_json_is_the_fingerprint_and_what_was_found_by_severity(cli: Cli, found: dict[str, Any]) -> None:
    done = cli("doctor", "--json")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)
    assert said["schema_version"]
    assert said["fingerprint_id"] == fingerprint_id(found)
    assert said["fingerprint"] == found
    by_code = {finding["code"]: finding for finding in said["findings"]}
    assert by_code["conflict"]["severity"] == "error"
    assert by_code["disk"]["severity"] == "warning"
    assert all(set(finding) == {"severity", "code", "what", "mend"} for finding in said["findings"])


@pytest.mark.usefixtures("machine")
def test_people_read_every_fact_and_how_to_mend_what_is_wrong(cli: Cli, found: dict[str, Any]) -> None:
    done = cli("doctor")
    assert (done.code, done.err) == (0, "")
    assert f"hardware.cpu {found['hardware']['cpu']}" in " ".join(done.out.split())
    assert "error   conflict: torchvision: \\x1b[2Jbroken\n        mend: pip uninstall torchvision" in done.out
    assert "warning disk: 1.0 GiB free" in done.out
    assert "to mend before measuring here" in done.out
    assert "\x1b" not in done.out


def test_gpus_are_shown_one_by_one() -> None:
    gpus = {"gpus": [{"name": "H100", "links": [None, "NVLink"]}, {"name": "H100", "mig": None}]}
    assert list(command._flat(gpus)) == [
        ("gpus.0.name", "H100"), ("gpus.0.links", "None, NVLink"), ("gpus.1.name", "H100"), ("gpus.1.mig", "-")
    ]  # fmt: skip


@pytest.mark.parametrize("example", command.EXAMPLES)
def test_the_examples_of_the_help_run(cli: Cli, example: str) -> None:
    done = cli(*example.split()[1:])
    assert done.code == 0
    assert "fingerprint_id" in done.out


def test_help_says_what_the_exit_code_is(cli: Cli) -> None:
    assert "exit code is 0 whatever was found" in " ".join(cli("doctor", "--help").out.replace("│", " ").split())
