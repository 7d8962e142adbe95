"""What the README shows runs as it stands there."""

import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


MEASURE, PLAN = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_measuring_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(MEASURE, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert "LongCoT" in said
    assert "Delethink C=256 m=128" in said
    assert Path(said.splitlines()[-1]).is_file()


def test_the_planning_example_runs(capsys):
    exec(compile(PLAN, "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["longcot", "delethink"] * 2
    assert all("GPU-months, bound by" in line for line in said)


COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("scaling ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shown_has_the_options_it_uses(cli, command):
    _, name, *arguments = shlex.split(command)
    help_text = cli(name, "--help").out
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in help_text
