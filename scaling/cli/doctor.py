"""`scaling doctor`: what this machine is, and what about it makes measurements doubtful."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli.console import print_json, visible

if TYPE_CHECKING:
    from scaling.measure.doctor import Finding

EXAMPLES = (
    "scaling doctor",
    "scaling doctor --json",
)
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print fingerprint and findings as JSON on stdout.")] = False,
) -> None:
    """Say what this machine is, what about it makes measurements doubtful, and how to mend it.

    Every run keeps the fingerprint shown. The exit code is 0 whatever was found: for scripts, --json gives each finding
    its severity (error: measuring fails or its figures are wrong; warning: they are doubtful; note: good to know).
    """
    from scaling.measure.doctor import findings, look
    from scaling.measure.fingerprint import fingerprint_id

    found, around = look(Path.cwd())
    wrong = findings(found, around)
    if json:
        print_json({"fingerprint_id": fingerprint_id(found), "fingerprint": found, "findings": wrong})
    else:
        _show(fingerprint_id(found), found, wrong)


def _show(id: str, found: Mapping[str, Any], wrong: list[Finding]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for name, value in [("fingerprint_id", id), *_flat(found)]:
        console.print(f"{name:<40} {visible(value)}")
    console.print()
    for finding in wrong:
        console.print(f"{finding.severity:<8}", style=_STYLES[finding.severity], end="")
        console.print(f"{finding.code}: {visible(finding.what)}")
        console.print(f"{'':8}mend: {visible(finding.mend)}")
    grave = sum(finding.severity != "note" for finding in wrong)
    console.print("Nothing stands against measuring here." if not grave else f"{grave} to mend before measuring here.")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of the fingerprint under its dotted name."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{index}")
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value)) or "-"
    else:
        yield name, "-" if value is None else str(value)
