"""What a study looks like while it asks: a bar on a terminal, a line for every arm that is done."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from scaling.cli.console import console, say, visible, warn
from scaling.cli.train_view import duration

if TYPE_CHECKING:
    import rich.progress

    from scaling.results import Store
    from studies.asking import Outcome, Progress


class AskingView:
    """`with AskingView(store, command) as view: view.done(ask(store, study, observe=view, remark=warn))`.

    Says nothing before an arm is asked. An interrupt is told how to go on, by the `command` that does.
    """

    def __init__(self, store: Store, command: str) -> None:
        self._store, self._command = store, command
        self._bar: rich.progress.Progress | None = None
        self._begun = time.monotonic()
        self._before = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if isinstance(error, KeyboardInterrupt):
            warn(f"interrupted; all traces that ended are saved in {self._store.path}; go on with: {self._command}")

    def __call__(self, progress: Progress) -> None:
        """Takes how far `ask` is, in whichever thread."""
        if progress.record is None:
            self._begun, self._before = time.monotonic(), progress.done
        if console.is_terminal:
            self._draw(progress)
        if progress.done == progress.total:
            self._tell(progress)

    def done(self, outcomes: list[Outcome]) -> bool:
        """Warns of what did not go well; whether any traces failed."""
        for outcome in outcomes:
            for remark in outcome.remarks:
                warn(remark)
        return any(outcome.failed for outcome in outcomes)

    def _draw(self, progress: Progress) -> None:
        from rich.markup import escape

        if self._bar is None:
            self._bar = _bar()
        (task,) = self._bar.task_ids
        self._bar.update(
            task,
            description=escape(visible(progress.arm)),
            completed=progress.arms_done * progress.total + progress.done,
            total=progress.arms * progress.total,
            right=_share(progress),
        )

    def _tell(self, progress: Progress) -> None:
        fresh = progress.done - self._before
        spent = f" in {duration(time.monotonic() - self._begun)}" if fresh else ", sampled before"
        more = f", {self._before} of them before" if self._before and fresh else ""
        say(f"{progress.arm}: {progress.total} traces, {_share(progress)} right{spent}{more}")


def _share(progress: Progress) -> str:
    """Right ones of those that did not fail."""
    judged = progress.done - progress.failed
    return f"{progress.right / judged:.0%}" if judged else "-"


def _bar() -> rich.progress.Progress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[right]} right"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task("", right="-")
    bar.start()
    return bar
