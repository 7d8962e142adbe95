"""What two speeds are compared of: a git ref, a source tree, a wheel or an environment, each with its own interpreter.

All but environments get a virtual environment that holds the build alone and borrows everything else from the one that
this process runs in: made in seconds, without a network, and the same dependencies on both sides.
"""

from __future__ import annotations

import json
import os
import shutil
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
    if path.is_file() and os.access(path, os.X_OK):
        return Build(spec, f"interpreter {spec}", path.absolute())
    if path.suffix == ".whl" and path.is_file():
        return Build(spec, f"wheel {path.name}", _installed(spec, path.absolute(), folder), folder)
    sources = folder / "sources"
    if any((path / name).is_file() for name in SOURCES):
        described = _copied(path, sources)
    elif commit := _commit(spec):
        described = _checked_out(commit, sources)
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


def _checked_out(commit: str, sources: Path) -> str:
    """Puts the commit into `sources`, with its history, which some projects take their version from."""
    top = _git("rev-parse", "--show-toplevel").stdout.strip()
    for command in (
        ["clone", "--quiet", "--shared", "--no-checkout", top, str(sources)],
        ["-C", str(sources), "checkout", "--quiet", "--detach", commit],
    ):
        if (done := _git(*command)).returncode:
            raise UsageError(f"commit {commit[:12]} cannot be checked out: {_last_line(done.stderr)}")
    return f"commit {commit[:12]}"


def _copied(tree: Path, sources: Path) -> str:
    """Copies a tree as it is, without what git ignores; building may write into the copy."""
    listed = _git("-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed.returncode:
        shutil.copytree(tree, sources, symlinks=True)
        return f"sources in {tree.resolve().name}"
    for name in filter(None, listed.stdout.split("\0")):
        if (tree / name).is_file():  # but not what is deleted, or a submodule
            (sources / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, sources / name)
    commit = _git("-C", str(tree), "rev-parse", "HEAD").stdout.strip()
    changed = _git("-C", str(tree), "status", "--porcelain").stdout.strip()
    return f"working tree {'with changes to' if changed else 'at'} {commit[:12]}" if commit else "working tree"


def _installed(spec: str, what: Path, folder: Path) -> Path:
    """The interpreter of a new environment in which `what`, sources or a wheel, is installed."""
    environment = folder / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    ours = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
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
        return all(metadata.version((wanted := Requirement(r)).name) in wanted.specifier for r in asked)
    except (OSError, KeyError, ValueError, metadata.PackageNotFoundError):
        return False


def origin(build: Build, module: str) -> Path:
    """Where the build imports a module from; raises `UsageError`, with the reason, if it cannot."""
    code = f"import importlib.util, json; print(json.dumps(importlib.util.find_spec({module!r}).origin))"
    done = subprocess.run(
        [build.python, "-P", "-c", code], check=False, capture_output=True, text=True, env=clean_environment()
    )
    if done.returncode:
        raise UsageError(f"{build.described} has no {module}: {_last_line(done.stderr)}")
    return Path(json.loads(done.stdout))


def clean_environment() -> dict[str, str]:
    """The environment without what would put other modules before a build's own."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["git", *arguments], check=False, capture_output=True, text=True, timeout=120)
    except FileNotFoundError as error:
        raise UsageError("git is not installed; give a wheel or an environment instead of a ref") from error


def _last_line(text: str) -> str:
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith(("error:", "fatal:")) and not line.endswith(":")]
    return (told or lines or ["no reason given"])[-1]
