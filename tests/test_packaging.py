"""What users install: a wheel that works on its own, a light import, pinned versions that cover all we depend on."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import scaling

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command as a user's shell would, knowing nothing of this checkout; its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
    ran = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir")
    run(*pip, target, ROOT, cwd=target)
    return next(target.glob("*.whl"))


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"scaling/__init__.py", "scaling/py.typed", "scaling/predict/catalogue.json"} <= names
    assert {name.partition("/")[0] for name in names} == {
        "scaling",
        "trainer",
        "studies",
        "reports",
        "thinking_cost-0.1.0.dist-info",
    }
    assert any(name.endswith("licenses/LICENSE") for name in names)
    data = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("reports/*") if path.suffix in (".j2", ".js")}
    assert data <= names


def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are lent by this environment, but not this checkout."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    empty = tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "pip", "--quiet", "--python", python, "install", "--no-deps", wheel, cwd=empty)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=empty).strip())
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))

    assert run(tmp_path / "venv" / "bin" / "scaling", "--version", cwd=empty) == f"scaling {PROJECT['version']}\n"
    where = run(python, "-c", "import scaling; scaling.Store; print(scaling.__file__)", cwd=empty).strip()
    assert Path(where).is_relative_to(tmp_path)
    assert "8192" in run(python, "-c", "import scaling; print(scaling.parse_lengths('8k..96k'))", cwd=empty)
    assert not list(empty.iterdir())


def test_every_public_name_is_what_its_home_defines() -> None:
    for name in scaling.__all__:
        home = import_module(scaling._HOME[name])
        assert getattr(scaling, name) is getattr(home, name)
    assert set(scaling.__all__) <= set(dir(scaling))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        scaling.nonsense  # noqa: B018


def test_type_checkers_know_every_public_name() -> None:
    source = (ROOT / "scaling" / "__init__.py").read_text()
    for name, home in scaling._HOME.items():
        assert f"from {home} import {name} as {name}" in source


def test_the_constraints_pin_every_dependency_within_its_bounds() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
    assert pins["torch"] == "2.13.0"
