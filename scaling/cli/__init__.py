"""The command line: one file a command; this one joins them, and turns every error into one line and an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from scaling.cli.console import visible
from scaling.errors import ScalingError, unknown

# One line a command, in the order of the help: scaling/cli/<name>.py defines the function <name> (with _ for -), whose
# annotations are the options and whose docstring is the help, and EXAMPLES, a few command lines shown below it.
# The function returns its exit code, or None for 0.
COMMANDS = [
    "plan",
    "run",
    "fit",
    "report",
    "fetch",
    "trace",
    "probe",
    "test-time",
    "thoughts",
    "train",
    "values",
    "doctor",
    "check",
    "ab",
]

OUR_FAULT, INTERRUPTED, READER_GONE = 70, 130, 141
"""Exit codes beside those of the commands and of `ScalingError`."""

log = logging.getLogger("scaling")


class _Commands(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


def _examples(*lines: str) -> str:
    return "\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in lines)])


app = typer.Typer(
    name="scaling",
    cls=_Commands,
    no_args_is_help=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_examples("scaling run", "scaling fit", "scaling report", "scaling run --mode delethink --lengths 8k..96k"),
)
for _name in COMMANDS:
    _function = _name.replace("-", "_")
    _module = import_module(f"{__name__}.{_function}")
    app.command(_name, epilog=_examples(*_module.EXAMPLES))(getattr(_module, _function))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"scaling {version('thinking-cost')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens and show the traceback of an error.")
    ] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What long thinking costs, and whether chunked thinking pays.

    Measures LongCoT and Delethink across thinking lengths, fits their cost laws, and reports.
    """
    if verbose:
        logging.basicConfig(format="%(name)s: %(message)s")
    log.setLevel(logging.DEBUG if verbose else logging.WARNING)
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line (`sys.argv` unless given) and returns its exit code; prints an error as one line."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # or print would take stdout for it
    if sys.stdout is None:
        return _fail("stdout is closed; redirect it to /dev/null to discard what is printed", 2)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of what its encoding lacks; stderr escapes it
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _blame(error)
        _discard(sys.stdout)
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """What a stream still holds goes nowhere, or the interpreter would complain of it as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: Sequence[str] | None) -> int:
    try:
        command = typer.main.get_command(app)
        result = command.main(arguments, prog_name="scaling", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except ScalingError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort) as stop:  # Typer aborts at Ctrl-C, and at an EOFError whoever raised it
        return _blame(stop.__cause__) if isinstance(stop.__cause__, EOFError) else INTERRUPTED
    except SystemExit as stop:  # the end of shell completion, or how Typer takes a broken pipe
        if isinstance(stop.__context__, BrokenPipeError):
            return READER_GONE
        raise
    except typer.TyperException as error:
        return _fail(_explain(error), 2)
    except Exception as error:
        return _blame(error)


def _fail(message: str, code: int) -> int:
    if log.isEnabledFor(logging.DEBUG):
        traceback.print_exc()
    with suppress(OSError):  # where stderr cannot be written, the exit code says what there is to say
        print(f"scaling: error: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code


def _blame(error: BaseException) -> int:
    """Says that we are at fault; but a reader that went away and a full disk are nobody's."""
    if isinstance(error, BrokenPipeError):
        return READER_GONE
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return _fail(f"cannot write {error.filename or 'output'}: {error.strerror}; free some space", 2)
    hint = "" if log.isEnabledFor(logging.DEBUG) else "; `scaling -v …` shows where"
    return _fail(f"this is our fault, not yours: {type(error).__name__}: {error}{hint}", OUR_FAULT)


def _explain(error: Any) -> str:
    """A usage error in our words: what was wrong, and near names for an option that does not exist."""
    context: Any = getattr(error, "ctx", None)
    see = f"see `{context.command_path} --help`" if context is not None else "see --help"
    if hasattr(error, "possibilities"):
        known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        hint = str(unknown("option", error.option_name, known))
        return hint if "did you mean" in hint else f"unknown option {error.option_name!r}; {see}"
    message: str = error.format_message().rstrip(".")
    if hasattr(error.__cause__, "errors"):  # Typer's validator knows the value that it refused, its message does not
        message += f", got {error.__cause__.errors()[0]['input']!r}"
    return f"{message[:1].lower()}{message[1:]}; {see}"
