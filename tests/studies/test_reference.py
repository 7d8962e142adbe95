"""The reference study's steps, in order, each going on where it was."""

from __future__ import annotations

import itertools
from pathlib import Path

from studies.reference import steps


def first(folder: Path, count: int) -> list[list[str]]:
    return list(itertools.islice(steps(folder, (0, 1), 4, ("steps=2",)), count))


def test_it_trains_then_probes_the_warm_start_then_asks_every_policy_in_both_environments(tmp_path: Path):
    training, probe, far, positions = first(tmp_path, 4)
    assert training[0] == "studies.training"
    assert training[-2:] == ["--set", "steps=2"]
    assert probe[:4] == ["scaling", "probe", "--model", str(tmp_path / "training" / "warm-0")]
    asked = [far[place + 1] for place, word in enumerate(far) if word == "--model"]
    assert [Path(model).name for model in asked] == [
        "warm-0", "warm-1", "delethink-0", "delethink-1", "longcot-0", "longcot-1"
    ]  # fmt: skip
    assert str(tmp_path / "training" / "longcot-long-1") in positions


def test_what_was_begun_is_resumed(tmp_path: Path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "manifest.json").write_text("{}")
    _, probe, far, _ = first(tmp_path, 4)
    assert far == ["scaling", "test-time", "--resume", "--out", str(tmp_path / "far")]
    assert "--resume" not in probe
