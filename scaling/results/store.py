"""A run on disk: the directory that keeps rows, and the grids that they refer to, safe."""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.errors import StoreError, first_line
from scaling.files import appearing
from scaling.results.row import SCHEMA_VERSION, Row, row_schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MANIFEST = "manifest.json"
FORMAT = "scaling-run"
ABANDONED_SECONDS = 3600.0
"""A temporary file this old belongs to a writer that was killed."""


class Store:
    """A run: a directory with `manifest.json`, one Parquet part a row, and the grids that profiled rows refer to.

    Every file appears whole or not at all (temporary name, fsync, link). A part that exists is done: that settles
    resuming, doubles, and two writers in one directory. Build one with `create` or `open`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._swept = False

    @classmethod
    def create(cls, path: str | Path, manifest: Mapping[str, Any], *, join: bool = False) -> Store:
        """Starts a run in a new or empty directory.

        `manifest` is what the run has to remember, as JSON; its format and schema version are added. Raises
        `StoreError` if there is a run or anything else already, or if the directory cannot be written. With `join`, a
        run that is there is opened instead: of several writers that begin one run, the first one's manifest holds.
        """
        path = Path(path)
        header = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
        complete = {**header, **manifest, **header}
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(not entry.match(".*.tmp") for entry in path.iterdir()):
                if join and (path / MANIFEST).exists():
                    return cls.open(path)
                raise StoreError(f"{path} is not empty; give a new directory, or resume the run that is there")
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            if not _publish(path / MANIFEST, _to_json(complete)):
                if join:
                    return cls.open(path)
                raise StoreError(f"{path} was just taken by another run; give a new directory")
        except StoreError:
            with suppress(OSError):
                path.rmdir()  # only if it is empty: a run that could not start leaves nothing
            raise
        return cls(path, complete)

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Opens a run to read or to go on; raises `StoreError` with the reason if that is not possible."""
        path = Path(path)
        try:
            if not path.exists():
                raise StoreError(f"no run at {path}; start one with `scaling run --out {path}`")
            if not path.is_dir():
                raise StoreError(f"{path} is a file; a run is a directory with a {MANIFEST}")
            if not (path / MANIFEST).exists():
                raise StoreError(f"{path} is not a run: it has no {MANIFEST}")
        except OSError as error:
            raise _cannot_read(path, error) from error
        manifest = read_json(path / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise StoreError(f"{path} is not a run: its {MANIFEST} was written by something else")
        check_version(path / MANIFEST, manifest.get("schema_version"))
        return cls(path, manifest)

    def append(self, row: Row) -> bool:
        """Stores one row durably; False, and nothing changed, if this repeat of its cell is there already."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._sweep()
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.Table.from_pylist([asdict(row)], row_schema()), sink, compression="none", write_page_checksum=True
        )
        return _publish(self.path / _part_name(row.cell_id, row.repeat), sink.getvalue().to_pybytes())

    def done(self) -> set[tuple[str, int]]:
        """(cell_id, repeat) of every row there is."""
        return {(match["cell"], int(match["repeat"])) for _, match in self._parts()}

    def drop_after(self, repeat: int) -> None:
        """Removes the rows of later repeats, which are to be made again."""
        try:
            for path, match in self._parts():
                if int(match["repeat"]) > repeat:
                    path.unlink()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def frame(self) -> pd.DataFrame:
        """All rows, sorted by file name, with the columns of `Row` in its order.

        Integers that may be null are `Int64`; a null float is NaN. Columns that a newer minor schema added are left
        out. Raises `StoreError` naming the part that is damaged or of a newer schema.
        """
        import pandas as pd
        import pyarrow as pa

        schema = row_schema()
        table = pa.concat_tables([schema.empty_table(), *(_read_part(path, match) for path, match in self._parts())])
        frame: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
        return frame.astype({f.name: "int64" for f in schema if f.type == pa.int64() and not f.nullable})

    def save_grid(self, grid_id: str, grid: Mapping[str, Any]) -> None:
        """Keeps the measured points that profiled rows of this `grid_id` integrate; replaces an older one."""
        path = self._grid_path(grid_id)
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise _cannot_write(path, error) from error
        _publish(path, _to_json({"schema_version": SCHEMA_VERSION, **grid}), replace=True)

    def grid(self, grid_id: str) -> dict[str, Any]:
        """What `save_grid` kept, with its `schema_version`."""
        path = self._grid_path(grid_id)
        if not path.exists():
            raise StoreError(f"{self.path} has no grid {grid_id!r}")
        grid = read_json(path)
        check_version(path, grid.get("schema_version"))
        return grid

    def _grid_path(self, grid_id: str) -> Path:
        return self.path / "grids" / f"{_checked_id(grid_id)}.json"

    def _parts(self) -> list[tuple[Path, re.Match[str]]]:
        try:
            entries = sorted(self.path.iterdir())
        except OSError as error:
            raise _cannot_read(self.path, error) from error
        return [(entry, match) for entry in entries if (match := _PART.fullmatch(entry.name))]

    def _sweep(self) -> None:
        """Removes, once, what killed writers left half-written; whatever hinders it is left to the next writer."""
        if self._swept:
            return
        self._swept = True
        with suppress(OSError):
            for entry in [*self.path.glob(".*.tmp"), *self.path.glob("grids/.*.tmp")]:
                if time.time() - entry.stat().st_mtime > ABANDONED_SECONDS:
                    entry.unlink()


_ID = re.compile(r"[0-9A-Za-z_]+")
_PART = re.compile(rf"(?P<cell>{_ID.pattern})-(?P<repeat>\d+)\.parquet")


def _checked_id(id: str) -> str:
    if not _ID.fullmatch(id):
        raise ValueError(f"id {id!r} cannot name a file; use letters, digits and _")
    return id


def _part_name(cell_id: str, repeat: int) -> str:
    return f"{_checked_id(cell_id)}-{repeat:d}.parquet"


def _read_part(path: Path, name: re.Match[str]) -> pa.Table:
    """One part in the schema of `Row`: columns it lacks are null, columns we do not know are dropped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
        check_version(path, table["schema_version"][0].as_py())
        columns = [
            table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(len(table), f.type)
            for f in row_schema()
        ]
        aligned = pa.Table.from_arrays(columns, schema=row_schema())
        aligned.validate(full=True)
    except (pa.ArrowException, OSError, KeyError, IndexError) as error:
        raise _damaged(path, first_line(error)) from error
    for f in aligned.schema:
        if not f.nullable and aligned[f.name].null_count:
            raise _damaged(path, f"no {f.name}")
    if aligned.select(["cell_id", "repeat"]).to_pylist() != [{"cell_id": name["cell"], "repeat": int(name["repeat"])}]:
        raise _damaged(path, "the row inside is not the one that its name says")
    return aligned


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(f"{path} is damaged ({reason}); remove it and resume the run to measure it again")


def check_version(path: Path, version: object) -> None:
    """Raises `StoreError` unless `version` is one that this schema can read."""
    match = re.fullmatch(r"(\d+)\.\d+", str(version))
    if match is None:
        raise StoreError(f"{path} has no schema version; expected one like {SCHEMA_VERSION}")
    ours = int(SCHEMA_VERSION.partition(".")[0])
    if int(match[1]) > ours:
        raise StoreError(f"{path} has schema {version}, newer than the {ours}.x that is understood; upgrade to read it")


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `StoreError` where it cannot be read or holds anything else."""
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise _cannot_read(path, error) from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged: expected a JSON object")
    return value


def _publish(path: Path, content: bytes, replace: bool = False) -> bool:
    """Makes `path` appear with all its content, durably; False if it exists and is not to be replaced.

    Raises `StoreError`, with nothing left behind, where it cannot be written.
    """
    try:
        with appearing(path, replace=replace) as pending:
            pending.write_bytes(content)
    except FileExistsError:
        return False
    except OSError as error:
        raise _cannot_write(path, error) from error
    return True


def _cannot_read(path: Path, error: OSError) -> StoreError:
    return StoreError(f"cannot read {path}: {error.strerror or error}")


def _cannot_write(path: Path, error: OSError) -> StoreError:
    hint = "; free some space and resume the run" if error.errno == errno.ENOSPC else ""
    return StoreError(f"cannot write {path}: {error.strerror or error}{hint}")
