"""What the commands of the studies share: options that a run remembers, its tasks, and asking under a progress bar."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from scaling.cli.asking_view import AskingView
from scaling.cli.console import FINISHED_WITH_FAILURES, warn
from scaling.errors import StoreError, UsageError, unknown
from scaling.results import Store
from scaling.text import RULES

if TYPE_CHECKING:
    from studies.asking import Outcome, Questions, Study

ELSEWHERE = ("out", "resume", "json", "dry_run")
"""Options of a study's command that say nothing of what is asked."""

MAY_CHANGE = ("concurrency", "base_url", "deadline", "key_variable")
"""Options that a resumed run may be given anew: they change no trace."""


def given(context: typer.Context) -> dict[str, Any]:
    """The options that stand on the command line, by parameter."""
    return {name: value for name, value in context.params.items() if _is_given(context, name)}


def settled(context: typer.Context, preset: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All options of what is asked, by parameter: those of the command line before the preset's before the defaults."""
    options = {**context.params, **(preset or {}), **given(context)}
    return {name: value for name, value in options.items() if name not in ELSEWHERE}


def remembered(context: typer.Context, study: str, out: Path | None) -> tuple[Store, dict[str, Any]]:
    """The run of this study in `out`, which is to go on, and the options that it was begun with.

    Those that `MAY_CHANGE` are taken from the command line where they stand there. Raises `UsageError` for any other
    option beside --resume, and without `out`; `StoreError` where the run is no such study's.
    """
    now = given(context)
    if out is None:
        raise UsageError("--resume goes on with a run; say which, as in --resume --out runs/first")
    for name in now:
        if name not in (*ELSEWHERE, *MAY_CHANGE) or name == "dry_run":
            flag = next(p.opts[0] for p in context.command.params if p.name == name)
            raise UsageError(f"--resume asks on as the run was begun; leave {flag} out")
    store = Store.open(out)
    if store.manifest.get("study") != study or not isinstance(store.manifest.get("options"), dict):
        kind = store.manifest.get("study") or "no study"
        raise StoreError(f"{out} cannot go on as `scaling {study}`: it is a run of {kind}; give another --out")
    return store, {**store.manifest["options"], **{name: now[name] for name in MAY_CHANGE if name in now}}


def rules_of(answer: str | None) -> list[str] | None:
    """The answer rules that --answer names; None without it. Raises `UsageError` for one that there is not."""
    if answer is None:
        return None
    rules = [rule.strip() for rule in answer.split(",")]
    for rule in rules:
        if rule not in RULES:
            raise unknown("answer rule", rule, RULES)
    return rules


@contextmanager
def opened_tasks(
    specs: Sequence[str], seed: int, problems: int, rules: Sequence[str] | None = None
) -> Iterator[list[Questions]]:
    """The first `problems` problems of each task, whose verifiers are closed at the end; raises `UsageError`.

    `rules`: how answers are found, None for each task's own way.
    """
    from scaling.tasks import load
    from studies.asking import Questions

    if not specs:
        raise UsageError("there is nothing to think about; give --task, as in --task chain_sum")
    with ExitStack() as stack:
        found = []
        for spec in dict.fromkeys(specs):
            task = load(spec, seed=seed)
            stack.callback(task.close)
            found.append(Questions(spec, task, task.problems(problems), rules or task.rules))
        yield found


def default_directory(study: str, model: str) -> Path:
    """`runs/<time>-<study>-<model>`."""
    return Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{study}-{Path(model).name}"


def begun(out: Path, study: Study, options: Mapping[str, Any]) -> Store:
    """The study's new run in `out`, which remembers its options for --resume."""
    from studies.asking import begin

    return begin(out, study, command=shlex.join(["scaling", *sys.argv[1:]]), options=dict(options))


def conduct(store: Store, study: Study) -> list[Outcome]:
    """Asks what the run still lacks under a progress bar, and remarks what did not go well."""
    from studies.asking import ask
    from studies.study import check_same

    check_same(store, study)
    again = shlex.join(["scaling", study.name, "--resume", "--out", str(store.path)])
    with AskingView(store, again) as view:
        outcomes = ask(store, study, observe=view, remark=warn)
        view.done(outcomes)
    return outcomes


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """4 where a trace failed."""
    return FINISHED_WITH_FAILURES if any(outcome.failed for outcome in outcomes) else 0


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
