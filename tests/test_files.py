"""A file appears whole or not at all, and once it is there, it stays."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from scaling.files import appearing, publish


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the disk is told, in order: names of what is synced, linked or renamed."""
    said: list[str] = []
    fsync, link, rename = os.fsync, os.link, Path.replace

    def note_sync(descriptor: int) -> None:
        said.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def note_link(source: Path, path: Path) -> None:
        said.append(f"link {path.name}")
        link(source, path)

    def note_rename(self: Path, path: Path) -> Path:
        said.append(f"rename {path.name}")
        return rename(self, path)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    monkeypatch.setattr(Path, "replace", note_rename)
    return said


@pytest.mark.parametrize("replace", [True, False])
def test_a_file_is_not_there_before_it_is_whole(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "file"
    with appearing(path, replace=replace) as pending:
        pending.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("replace", "how"), [(True, "rename"), (False, "link")])
def test_content_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, told: list[str], replace: bool, how: str
) -> None:
    with appearing(tmp_path / "file", replace=replace) as pending:
        pending.write_text("whole")
    assert told == [f"sync {pending.name}", f"{how} file", f"sync {tmp_path.name}"]


def test_a_file_that_is_there_is_replaced_only_if_told_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileExistsError), appearing(path, replace=False) as pending:
        pending.write_text("new")
    assert path.read_text() == "old"
    with appearing(path, replace=True) as pending:
        pending.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_rule_holds_where_there_are_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    with appearing(path, replace=False) as pending:
        pending.write_text("old")
    with pytest.raises(FileExistsError), appearing(path, replace=False) as pending:
        pending.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("replace", [True, False])
def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path, replace: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), appearing(path, replace=replace) as pending:  # noqa: PT012
        pending.write_text("hal")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_gets_its_name_when_all_it_holds_is_on_the_disk(tmp_path: Path, told: list[str]) -> None:
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "file").write_text("whole")
    publish(made, tmp_path / "final")
    assert sorted(told[:3]) == ["sync deep", "sync file", "sync made"]
    assert told[3:] == ["rename final", f"sync {tmp_path.name}"]
    assert (tmp_path / "final" / "deep" / "file").read_text() == "whole"
    assert not made.exists()
