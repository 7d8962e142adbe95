"""What a study is planned to take, arm by arm."""

from __future__ import annotations

import pytest

from scaling.errors import UsageError
from scaling.planning import ask
from studies.markovian_probe import environments
from studies.planned import planned
from studies.probe_presets import PAPER, PRESETS, preset

ARMS = environments(32768, [8192])


def test_tokens_are_those_of_a_third_of_the_budget_and_of_all_of_it() -> None:
    longcot, delethink = planned(ARMS, 100, None)
    assert (longcot["arm"], longcot["traces"], longcot["gpu_hours"]) == ("longcot", 100, None)
    assert longcot["thinking_tokens"] == 100 * (32768 // 3)
    assert longcot["most_thinking_tokens"] == 100 * 32768
    assert longcot["most_processed_tokens"] == 100 * (32768 + 128)
    assert delethink["most_processed_tokens"] > longcot["most_processed_tokens"]  # carryover is encoded again


def test_hours_are_of_the_gpus_that_are_named() -> None:
    longcot, delethink = planned(ARMS, 100, ask("r1-distill-qwen-1.5b", "h100", 1))
    assert 0 < delethink["gpu_hours"] < delethink["most_gpu_hours"] < longcot["most_gpu_hours"]


def test_presets_have_the_papers_sizes_and_name_their_sources() -> None:
    for made in PRESETS.values():
        assert made.options["temperature"] == 0.6
        assert "8k" in made.options["context_size"]
        assert all(one["source"].startswith(PAPER) for one in made.published)
    with pytest.raises(UsageError, match="unknown preset 'gpt-oss'; did you mean gpt-oss-120b"):
        preset("gpt-oss")
