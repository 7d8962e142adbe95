"""A small study that tests of studies share, and the checkpoint that it asks."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from scaling.results import Store


@pytest.fixture(scope="session")
def walker(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy that half knows short walks, with its tokenizer."""
    from scaling.tasks.walk import TOKENIZER

    path = tmp_path_factory.mktemp("walker") / "walker"
    shutil.copytree(taught, path)
    TOKENIZER.save(path)
    return path


@pytest.fixture(scope="session")
def asked() -> ModuleType:
    """`asked.py` beside this file."""
    spec = importlib.util.spec_from_file_location("asked", Path(__file__).with_name("asked.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def walkers(asked: ModuleType, walker: Path) -> Callable[..., Any]:
    """`walkers(field=…)`: four walks, two samples of each, in LongCoT and in Delethink."""
    return lambda model=walker, **changes: asked.walkers(model, **changes)


@pytest.fixture(scope="session")
def whole(asked: ModuleType, walkers: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The run of that study."""
    store: Store = asked.asked_whole(tmp_path_factory.mktemp("asked") / "whole", walkers())
    return store
