"""Saved baselines: `<directory>/<name>/<fingerprint id>.json`, one for each machine, fit for committing."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from scaling.errors import StoreError, UsageError
from scaling.files import appearing
from scaling.gate.check import differences
from scaling.gate.side import Measured, Side, read_side

DIRECTORY = Path("baselines")

_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")


def save(side: Side, name: str, directory: Path = DIRECTORY) -> tuple[Path, list[Path]]:
    """Keeps a side as the baseline `name` of its machine, in place of an older one.

    Counters are the same on every machine: where baselines that other machines saved under this name have others,
    these cells there become this side's, without seconds; but a cell that fails here may be fine there, and stays.
    Returns the path, and those of the baselines that changed so.
    Raises `UsageError` for a name that cannot name a file, `StoreError` where nothing can be written.
    """
    path = own(name, side, directory)
    named = replace(side, name=name)
    others = {p: read_side(p) for p in sorted(path.parent.glob("*.json")) if p != path}
    renewed = {p: other for p, old in others.items() if (other := _renewed(old, named)) is not None}
    for target, content in {path: named, **renewed}.items():
        _write(target, content)
    return path, [*renewed]


def find(name: str, like: Side, directory: Path = DIRECTORY) -> Side:
    """The baseline `name` of the machine that measured `like`, else that of another one, for its counters alone.

    Of several others it is the first that measured what `like` did. Raises `StoreError` where there is none.
    """
    path = own(name, like, directory)
    if path.exists():
        return read_side(path)
    others = [read_side(path) for path in sorted(path.parent.glob("*.json"))]
    if not others:
        command = f"scaling check RUN --save {name}{kept_in(directory)}"
        raise StoreError(f"no baseline {name!r} in {directory} yet; save one with `{command}`")
    alike = (side for side in others if side.kind == like.kind and not differences(side, like))
    return next(alike, others[0])


def kept_in(directory: Path) -> str:
    """How a command is told that baselines are kept there."""
    return "" if directory == DIRECTORY else f" --directory {directory}"


def own(name: str, side: Side, directory: Path = DIRECTORY) -> Path:
    """Where the baseline `name` of the machine that measured `side` lies, or would."""
    return directory / _checked(name) / f"{_checked(side.fingerprint_id or 'unknown')}.json"


def displaced(side: Side, name: str, directory: Path = DIRECTORY) -> dict[str, tuple[Any, Any]]:
    """What the baseline that `save` would replace says differently of what it measured; nothing where there is none
    that can be read."""
    with suppress(StoreError):
        old = read_side(own(name, side, directory))
        return differences(old, side) if old.kind == side.kind else {"kind": (old.kind, side.kind)}
    return {}


def _renewed(old: Side, new: Side) -> Side | None:
    """`old` with the cells of `new` wherever counters differ; None where they do not, or where it measured other
    things."""
    if old.kind != new.kind or differences(old, new):
        return None
    measured = {key: _kept(old.measured.get(key), each) for key, each in new.measured.items()}
    return None if measured == old.measured else replace(old, measured=measured)


def _kept(old: Measured | None, new: Measured) -> Measured:
    if old is not None and (new.status != "ok" or (old.status, old.counters) == (new.status, new.counters)):
        return old
    return replace(new, memory_bytes=None, seconds=())


def _write(path: Path, side: Side) -> None:
    text = json.dumps(side.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path, replace=True) as pending:
            pending.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a baseline; use letters, digits, '.', '_' and '-', as in main")
    return name
