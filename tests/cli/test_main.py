"""The command line as a whole: its help is quick, and whatever goes wrong is one line and an exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from scaling.cli import app, main
from scaling.errors import StoreError, UsageError

Cli = Callable[..., Any]
Register = Callable[[Callable[..., Any]], None]


@pytest.fixture
def register() -> Iterator[Register]:
    """Adds a command to the real command line, for one test."""
    before = list(app.registered_commands)
    yield lambda function: app.command(function.__name__)(function) and None
    app.registered_commands[:] = before


def scaling(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """`scaling ARGUMENTS…` as a process of its own."""
    command = [sys.executable, "-m", "scaling", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


# help and version


def test_help_takes_little_cpu_time() -> None:
    """0.4 s of CPU is the promise; the best of three, because a busy machine makes one run slow but not all."""
    seconds = []
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-m", "scaling", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)
    assert min(seconds) < 0.4


def test_neither_help_nor_import_loads_anything_heavy() -> None:
    code = (
        "import sys, scaling; from scaling.cli import main; main(['--help']); "
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'pyarrow', 'scipy', 'matplotlib', 'jinja2'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_help_lists_the_commands_and_shows_examples(cli: Cli) -> None:
    ran = cli("--help")
    assert ran.code == 0
    assert "Examples" in ran.out
    assert "scaling run --mode delethink --lengths 8k..96k" in ran.out
    assert cli("-h").out == ran.out


@pytest.mark.parametrize("command", [info.name for info in app.registered_commands])
def test_every_command_has_help_with_examples(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert ran.code == 0
    assert "Examples" in ran.out


def test_no_command_at_all_shows_the_help(cli: Cli) -> None:
    ran = cli()
    assert ran.code == 0
    assert "Usage: scaling" in ran.out


def test_the_version_is_printed_alone(cli: Cli) -> None:
    assert cli("--version").out == "scaling 0.1.0\n"


def test_help_is_plain_where_colour_is_not_wanted() -> None:
    coloured = scaling("--help", env={**os.environ, "FORCE_COLOR": "1"})
    plain = scaling("--help", env={**os.environ, "FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert "\x1b[1;33m" in coloured.stdout
    assert "\x1b[1;33m" not in plain.stdout
    assert "\x1b" not in scaling("--help").stdout


def test_shells_can_complete_commands_and_options() -> None:
    env = {**os.environ, "_SCALING_COMPLETE": "complete_bash", "COMP_WORDS": "scaling --verb", "COMP_CWORD": "1"}
    ran = scaling(env=env)
    assert ran.stdout.split() == ["--verbose"]


# errors


def test_an_error_of_ours_is_one_line_and_its_exit_code(cli: Cli, register: Register) -> None:
    class Special(StoreError):
        exit_code = 4

    def refuse(code: int) -> None:
        raise UsageError("it makes\nno sense") if code == 2 else Special("it is gone")

    register(refuse)
    for code, line in [(2, "it makes no sense"), (4, "it is gone")]:
        ran = cli("refuse", code)
        assert (ran.code, ran.out, ran.err) == (code, "", f"scaling: error: {line}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["colour"], "unknown command 'colour'; did you mean color"),
        (["qqq"], "unknown command 'qqq'; known: "),
        (["color", "--shde", "1"], "unknown option '--shde'; did you mean --shade?"),
        (["color", "--qqq"], "unknown option '--qqq'; see `scaling color --help`"),
        (["--versio"], "unknown option '--versio'; did you mean --version"),
        (["color", "--shade", "dark"], "invalid value for '--shade': Input should be a valid integer"),
        (["color", "--shade"], "option '--shade' requires an argument; see --help"),
        (["color"], "missing option '--shade'"),
        (["color", "--shade", "1", "extra"], "got unexpected extra argument"),
    ],
)
def test_bad_usage_is_one_line_that_says_what_was_expected(
    cli: Cli, register: Register, arguments: list[str], message: str
) -> None:
    def color(shade: Annotated[int, typer.Option()]) -> None:
        raise AssertionError(shade)

    register(color)
    ran = cli(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"scaling: error: {message}")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["\x1b[2J"], ["--\x1b[2J"], ["plan", "--gpu", "\x1b[2J"]])
def test_what_would_steer_the_terminal_is_shown_instead(cli: Cli, arguments: list[str]) -> None:
    ran = cli(*arguments)
    assert ran.code == 2
    assert "\\x1b[2J" in ran.err
    assert "\x1b" not in ran.err


def test_a_value_of_the_wrong_type_is_shown(cli: Cli, register: Register) -> None:
    def color(shade: Annotated[int, typer.Option()]) -> None:
        raise AssertionError(shade)

    register(color)
    assert ", got 'dark'; see `scaling color --help`" in cli("color", "--shade", "dark").err


def crash() -> None:
    raise RuntimeError("two and two\nis five")


def test_our_own_fault_is_one_line_that_says_how_to_see_more(cli: Cli, register: Register) -> None:
    register(crash)
    ran = cli("crash")
    assert ran.code == 70
    assert ran.err == (
        "scaling: error: this is our fault, not yours: RuntimeError: two and two is five; `scaling -v …` shows where\n"
    )


def test_verbose_shows_where_it_happened(cli: Cli, register: Register) -> None:
    register(crash)
    ran = cli("-v", "crash")
    assert ran.code == 70
    assert "in crash" in ran.err
    assert ran.err.splitlines()[-1] == "scaling: error: this is our fault, not yours: RuntimeError: two and two is five"
    assert "Traceback" not in cli("crash").err


def test_an_end_of_file_inside_the_program_is_our_fault_too(cli: Cli, register: Register) -> None:
    def ends() -> None:
        raise EOFError("no more")

    register(ends)
    ran = cli("ends")
    assert ran.code == 70
    assert "EOFError: no more" in ran.err


def test_a_command_says_its_exit_code_by_returning_it(cli: Cli, register: Register) -> None:
    def inconclusive() -> int:
        return 3

    def fine() -> None:
        pass

    register(inconclusive)
    register(fine)
    assert (cli("inconclusive").code, cli("fine").code) == (3, 0)


# signals and pipes


def test_ctrl_c_ends_with_130_and_without_a_traceback(register: Register, capfd: pytest.CaptureFixture[str]) -> None:
    def wait() -> None:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        threading.Event().wait(30)

    register(wait)
    assert main(["wait"]) == 130
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("lines", [1, 100_000], ids=["noticed at the end", "noticed while printing"])
def test_a_reader_that_goes_away_is_met_with_silence(lines: int) -> None:
    code = (
        "import sys; from scaling.cli import app, main\n"
        "@app.command()\n"
        "def chatter(lines: int) -> None:\n"
        "    for _ in range(lines): print('and another thing')\n"
        f"sys.exit(main(['chatter', '{lines}']))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_that_does_not_fit_the_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "scaling", "--version"]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "scaling: error: cannot write output: No space left on device; free some space\n"


PLAN = f"{sys.executable} -m scaling plan --gpu h100 --mode longcot --lengths 8k"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_a_closed_stdout_is_one_line() -> None:
    ran = shell(f"{PLAN} >&-")
    assert ran.returncode == 2
    assert ran.stderr.startswith("scaling: error: stdout is closed; redirect it")
    assert ran.stderr.count("\n") == 1


def test_without_stderr_the_answer_is_printed_and_an_error_is_not() -> None:
    answered, refused = shell(f"{PLAN} 2>&-"), shell(f"{PLAN} --gpus 0 2>&-")
    assert (answered.returncode, refused.returncode, refused.stdout) == (0, 2, "")
    assert "LongCoT" in answered.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_error_that_cannot_be_written_leaves_its_exit_code() -> None:
    ran = shell(f"{PLAN} --gpus 0 2>/dev/full")
    assert (ran.returncode, ran.stdout) == (2, "")


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["ascii", "C locale"],
)
def test_what_an_encoding_lacks_is_replaced(environment: dict[str, str]) -> None:
    ran = shell(PLAN, **environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "on 8 ? h100-sxm" in ran.stdout
