"""One name for an environment wherever it is shown."""

from __future__ import annotations

import pytest

from scaling.labels import environment_label


@pytest.mark.parametrize(
    ("parameters", "label"),
    [
        (("longcot",), "LongCoT"),
        (("delethink", 1024, 512, "algorithm1"), "Delethink C=1k m=512"),
        (("delethink", 8192, 4096, "recipe"), "Delethink C=8k m=4k recipe"),
        (("delethink", 1500, 1536), "Delethink C=1500 m=1.5k"),
        (("summary", 8192, None, None, 1024), "Summary C=8k s=1k"),
        (("folding", 1024, None, None, 128), "Folding C=1k s=128"),
        (("budget-forcing", None, None, None, None, 2), "Budget forcing N=2"),
        (("of another kind", 8192), "of another kind C=8k"),
    ],
)
def test_an_environment_is_called_by_its_title_and_sizes(parameters: tuple[str, ...], label: str) -> None:
    assert environment_label(*parameters) == label
