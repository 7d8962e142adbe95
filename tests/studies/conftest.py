"""A checkpoint that questions can be asked in words, for the studies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def walker(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy that half knows short walks, with its tokenizer."""
    from scaling.tasks.walk import TOKENIZER

    path = tmp_path_factory.mktemp("walker") / "walker"
    shutil.copytree(taught, path)
    TOKENIZER.save(path)
    return path
