"""The picture of context and state sizes."""

from __future__ import annotations

from types import SimpleNamespace

from reports.grid import grid_drawing
from scaling.predict.search import Choice


def choice(context_size: int, state_size: int, hours: float | None) -> Choice:
    plan = None if hours is None else SimpleNamespace(total_gpu_hours=hours)
    return Choice(context_size, state_size, plan)  # type: ignore[arg-type]


def test_every_pair_has_its_hours_and_one_without_a_plan_a_dash() -> None:
    drawing = grid_drawing([choice(2048, 256, 1500.0), choice(2048, 512, None), choice(4096, 512, 900.0)], "hours")
    assert "1,500" in drawing.svg
    assert "900" in drawing.svg
    assert "–" in drawing.svg
    assert list(drawing.data["total_gpu_hours"].dropna()) == [1500.0, 900.0]


def test_one_pair_alone_is_a_picture_too() -> None:
    assert "C = 8k" in grid_drawing([choice(8192, 4096, 12.0)], "hours").svg
