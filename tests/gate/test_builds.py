"""A ref, a tree, a wheel and an environment become interpreters that run their own code."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

import scaling
from scaling.errors import UsageError
from scaling.gate.builds import Build, make, origin


@pytest.fixture
def project(project: Any) -> Any:
    """With a commit `first` whose work says 1, and a tree whose work says 2."""
    project.commit("return 1")
    project.git("tag", "first")
    project.write("return 2")
    return project


def built(spec: str, folder: Path) -> Build:
    folder.mkdir()
    return make(spec, folder)


def says(build: Build) -> str:
    """What `work` of a build returns, asked from a place where there are other sources."""
    command = [build.python, "-P", "-c", "import quick; print(quick.work())"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_a_ref_is_its_commit_whatever_the_tree_holds(project: Any, tmp_path: Path) -> None:
    (project.folder / "first").write_text("#!/bin/sh\n")
    (project.folder / "first").chmod(0o755)  # a program, and no interpreter
    build = built("first", tmp_path / "a")
    assert says(build) == "1"
    assert build.described == f"commit {project.git('rev-parse', 'first')[:12]}"
    assert build.own is not None
    assert build.own in origin(build, "quick").parents


def test_a_tree_is_as_it_lies_there_and_stays_so(project: Any, tmp_path: Path) -> None:
    (project.folder / ".gitignore").write_text("ignored\n")
    (project.folder / "ignored").write_text("large")
    (project.folder / "linked").symlink_to("quick")
    build = built(".", tmp_path / "b")
    assert says(build) == "2"
    assert build.described == f"working tree with changes to {project.git('rev-parse', 'HEAD')[:12]}"
    assert build.sources is not None
    assert not (build.sources / "ignored").exists()
    assert (build.sources / "linked").readlink() == Path("quick")
    assert project.git("status", "--porcelain", "--ignored").splitlines() == [
        "M quick/__init__.py",  # stripped
        "?? .gitignore",
        "?? linked",
        "!! ignored",
    ]
    copied = ["git", "-C", build.sources, "describe", "--tags", "--dirty"]  # as projects do that take a version from it
    assert subprocess.run(copied, check=True, capture_output=True, text=True).stdout == "first-dirty\n"


def test_a_tree_outside_git_is_copied(project: Any, tmp_path: Path) -> None:
    subprocess.run(["rm", "-rf", project.folder / ".git"], check=True)
    assert says(built(".", tmp_path / "b")) == "2"


@pytest.mark.usefixtures("project")
def test_a_wheel_is_installed(tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "--wheel-dir", tmp_path / "wheels", "."], check=True)
    build = built(str(next((tmp_path / "wheels").glob("*.whl"))), tmp_path / "a")
    assert says(build) == "2"
    assert build.sources is None


def test_an_environment_is_taken_as_it_is(tmp_path: Path) -> None:
    build = built(sys.prefix, tmp_path / "a")
    assert build.python == Path(sys.prefix) / "bin" / "python"
    assert origin(build, "pytest") == Path(pytest.__file__)


@pytest.mark.usefixtures("project")
def test_a_build_borrows_the_packages_of_this_environment(tmp_path: Path) -> None:
    assert origin(built("first", tmp_path / "a"), "pytest") == Path(pytest.__file__)


def test_a_project_in_a_folder_of_its_repository_is_found_there(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.folder / "part" / "docs").mkdir(parents=True)
    project.git("mv", "pyproject.toml", "quick", "part")
    project.git("-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "--message", "moved")
    monkeypatch.chdir(project.folder / "part" / "docs")
    build = built("HEAD", tmp_path / "a")
    assert (says(build), says(built("..", tmp_path / "b"))) == ("1", "2")
    assert build.sources == tmp_path / "a" / "sources" / "part"


def test_a_hook_of_git_may_call_it_and_keeps_its_repository(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = project.git("symbolic-ref", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(project.folder / ".git"))
    assert says(built("first", tmp_path / "a")) == "1"
    monkeypatch.delenv("GIT_DIR")
    assert project.git("symbolic-ref", "HEAD") == branch
    assert project.git("status", "--porcelain") == "M quick/__init__.py"


def test_what_a_build_needs_elsewhere_is_not_fetched(
    project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyproject = project.folder / "pyproject.toml"
    pyproject.write_text(
        pyproject.read_text().replace('["hatchling"]', """["hatchling", "absent; sys_platform == 'no'"]""")
    )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert says(built(".", tmp_path / "b")) == "2"


@pytest.mark.usefixtures("project")
def test_a_build_borrows_what_the_user_or_the_system_has_installed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this is no environment, or one that sees the system's packages."""
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "user"))
    monkeypatch.setenv("PYTHONPATH", str(Path(scaling.__file__).parents[1]))
    base = [sys._base_executable, "-c"]
    place = "import site; print(site.getusersitepackages())"
    users = Path(subprocess.run([*base, place], check=True, capture_output=True, text=True).stdout.strip())
    users.mkdir(parents=True)
    (users / "ours.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (users / "of_the_user.py").touch()
    (tmp_path / "a").mkdir()
    make_and_find = (
        "from pathlib import Path; from scaling.gate.builds import make, origin; "
        f"print(origin(make('first', Path({str(tmp_path / 'a')!r})), 'of_the_user'))"
    )
    found = subprocess.run([*base, make_and_find], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == str(users / "of_the_user.py")


@pytest.mark.usefixtures("project")
def test_what_names_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'no-such-ref' is no build; expected a git ref .*, a wheel, or an env"):
        built("no-such-ref", tmp_path / "a")
    with pytest.raises(UsageError, match="'--exec=x' is no build"):
        built("--exec=x", tmp_path / "b")


def test_a_ref_that_does_not_build_says_why(project: Any, tmp_path: Path) -> None:
    (project.folder / "pyproject.toml").write_text("[build-system]\nrequires = [")
    project.commit("return 3")
    with pytest.raises(UsageError, match=r"'HEAD' does not build: .*(?i:toml)"):
        built("HEAD", tmp_path / "a")


@pytest.mark.usefixtures("project")
def test_a_module_that_a_build_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"commit \w+ has no absent_module"):
        origin(built("first", tmp_path / "a"), "absent_module")


def test_an_environment_whose_python_is_none_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    build = Build("environment", "environment here", python)
    for script in ("#!/bin/sh\necho hello\n", "no program"):
        python.write_text(script)
        python.chmod(0o755)
        with pytest.raises(UsageError, match="environment here is no Python that runs here"):
            origin(build, "scaling")
