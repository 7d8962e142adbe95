"""What two speeds are compared of: a git ref, a source tree, a wheel or an environment, each with its own interpreter.

All but environments get a virtual environment that holds the build alone and borrows everything else from the one that
this process runs in: made in seconds, without a network, and the same dependencies on both sides.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from scaling.errors import UsageError

SOURCES = ("pyproject.toml", "setup.py")


@dataclass(frozen=True, slots=True)
class Build:
    """One side: how it was asked for, what that was found to be, and its interpreter.

    `own` holds everything that was made for it, None of an environment that was there; `sources` is a folder in it.
    """

    spec: str
    described: str
    python: Path
    own: Path | None = None
    sources: Path | None = None


def make(spec: str, folder: Path) -> Build:
    """Makes the build that `spec` names in the new directory `folder`.

    Raises `UsageError` where it names nothing, or what it names does not build.
    """
    path = Path(spec)
    if (path / "bin" / "python").is_file():
        return Build(spec, f"environment {spec}", (path / "bin" / "python").absolute())
    if path.is_file() and os.access(path, os.X_OK) and path.name.startswith(("python", "pypy")):
        return Build(spec, f"interpreter {spec}", path.absolute())
    if path.suffix == ".whl" and path.is_file():
        return Build(spec, f"wheel {path.name}", _installed(spec, path.absolute(), folder), folder)
    sources = folder / "sources"
    if _is_project(path):
        described = _copied(path, sources)
    elif commit := _commit(spec):
        sources, described = _checked_out(commit, sources)
    else:
        raise UsageError(
            f"{spec!r} is no build; expected a git ref of this repository, a source tree such as '.', a wheel, or an "
            "environment's directory"
        )
    return Build(spec, described, _installed(spec, sources, folder), folder, sources)


def _commit(ref: str) -> str | None:
    """The commit that a ref of the repository around the current directory names."""
    found = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    return found.stdout.strip() if found.returncode == 0 else None


def _checked_out(commit: str, sources: Path) -> tuple[Path, str]:
    """Puts the commit into `sources`, with its history, which some projects take their version from.

    The project in it is the one that the current directory lies in, where the repository holds several.
    """
    top = _git("rev-parse", "--show-toplevel").stdout.strip()
    for command in (_clone(top, sources), ["-C", str(sources), "checkout", "--quiet", "--detach", commit]):
        if (done := _git(*command)).returncode:
            raise UsageError(f"commit {commit[:12]} cannot be checked out: {_last_line(done.stderr)}")
    project = sources / _git("rev-parse", "--show-prefix").stdout.strip()
    while project != sources and not _is_project(project):
        project = project.parent
    return project, f"commit {commit[:12]}"


def _clone(top: str, sources: Path) -> list[str]:
    return ["clone", "--quiet", "--shared", "--no-checkout", top, str(sources)]


def _is_project(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SOURCES)


def _copied(tree: Path, sources: Path) -> str:
    """Copies a tree as it is, without what git ignores; building may write into the copy.

    The root of a repository comes with its history, as a commit does.
    """
    listed = _git("-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        shutil.copytree(tree, sources, symlinks=True)
        return f"sources in {tree.resolve().name}"
    commit = _git("-C", str(tree), "rev-parse", "--verify", "--quiet", "HEAD").stdout.strip()
    is_root = not _git("-C", str(tree), "rev-parse", "--show-prefix").stdout.strip()
    if commit and is_root and _git(*_clone(str(tree.resolve()), sources)).returncode == 0:
        _git("-C", str(sources), "reset", "--quiet", commit)
    for name in filter(None, listed.stdout.split("\0")):
        if (tree / name).is_file() or (tree / name).is_symlink():  # but not what is deleted, or a submodule
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, sources / name, follow_symlinks=False)
    changed = _git("-C", str(tree), "status", "--porcelain").stdout.strip()
    return f"working tree {'with changes to' if changed else 'at'} {commit[:12]}" if commit else "working tree"


def _installed(spec: str, what: Path, folder: Path) -> Path:
    """The interpreter of a new environment in which `what`, sources or a wheel, is installed."""
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    of_user = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    ours = dict.fromkeys([*of_user, *map(sysconfig.get_path, ("purelib", "platlib")), *site.getsitepackages()])
    theirs = Path(subprocess.run([python, "-c", _PURELIB], check=True, capture_output=True, text=True).stdout.strip())
    (theirs / "borrowed.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in ours))
    isolation = [] if what.is_dir() and not _can_build(what) else ["--no-build-isolation"]
    quiet = ["--quiet", "--no-input", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", *quiet, *isolation]
    done = subprocess.run([*command, str(what)], check=False, capture_output=True, text=True, env=clean_environment())
    if done.returncode:
        raise UsageError(f"{spec!r} does not build: {_last_line(done.stderr)}")
    return python


_PURELIB = "import sysconfig; print(sysconfig.get_path('purelib'))"


def _can_build(sources: Path) -> bool:
    """Whether what its build asks for is installed here; else pip has to fetch it."""
    try:
        asked = tomllib.loads((sources / "pyproject.toml").read_text())["build-system"]["requires"]
        wanted = [each for each in map(Requirement, asked) if each.marker is None or each.marker.evaluate()]
        return all(metadata.version(each.name) in each.specifier for each in wanted)
    except (OSError, KeyError, ValueError, metadata.PackageNotFoundError):
        return False


def origin(build: Build, module: str) -> Path:
    """Where the build imports a module from; raises `UsageError`, with the reason, if it cannot."""
    code = (
        f"import importlib.util, json; print(json.dumps(getattr(importlib.util.find_spec({module!r}), 'origin', None)))"
    )
    try:
        done = subprocess.run(
            [build.python, "-P", "-c", code], check=False, capture_output=True, text=True, env=clean_environment()
        )
        found = None if done.returncode else json.loads(done.stdout)
    except (OSError, ValueError) as error:
        raise UsageError(f"{build.described} is no Python that runs here: {error}") from error
    if found is None:
        raise UsageError(f"{build.described} has no {module}{f': {_last_line(done.stderr)}' if done.stderr else ''}")
    return Path(found)


_MISLEADING = ("PYTHONPATH", "PYTHONHOME", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


def clean_environment() -> dict[str, str]:
    """The environment without what would put other modules before a build's own, or, as the hooks of git are told them,
    the repository that the gate is called in before a clone of it."""
    return {name: value for name, value in os.environ.items() if name not in _MISLEADING}


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["git", *arguments], check=False, capture_output=True, text=True, timeout=120, env=clean_environment()
        )
    except FileNotFoundError as error:
        raise UsageError("git is not installed; give a wheel or an environment instead of a ref") from error


def _last_line(text: str) -> str:
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith(("error:", "fatal:")) and not line.endswith(":")]
    return (told or lines or ["no reason given"])[-1]
