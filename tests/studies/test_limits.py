"""How close to the machine's limits: what a point has to do, and that every point is measured or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaling.predict.shape import Shape, architecture
from studies import limits
from studies.limits import Bench, Point, page, points, run, work


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits.COPY_BYTES, "cpu", 2**20)
    monkeypatch.setitem(limits.SIDE, "cpu", 64)
    monkeypatch.setattr(limits, "CEILING_SECONDS", 0.001)


@pytest.fixture
def bench() -> Bench:
    return Bench("tiny", "float32")


def test_a_decode_step_reads_every_weight_once_and_all_keys_and_values(bench: Bench) -> None:
    body = sum(p.nbytes for name, p in bench.model.named_parameters() if "embed_tokens" not in name)
    head = bench.model.head.nbytes
    read = body + head if bench.shape.tied else body
    kv = bench.shape.kv_bytes_per_token("float32")
    assert work(bench.shape, "float32", Point("decode", 100, 3)) == read + 300 * kv


def test_an_untied_embedding_is_not_read() -> None:
    shape = Shape.from_config({**architecture("r1-distill-qwen-1.5b"), "tie_word_embeddings": False})
    tied = Shape.from_config({**architecture("r1-distill-qwen-1.5b"), "tie_word_embeddings": True})
    assert work(shape, "bfloat16", Point("decode", 1, 1)) == work(tied, "bfloat16", Point("decode", 1, 1))


def test_an_update_has_three_forwards_to_do(bench: Bench) -> None:
    forward = bench.shape.forward_flops(512)
    assert work(bench.shape, "float32", Point("update", 512)) == 3 * forward
    one = bench.shape.forward_flops(512, logits=1)
    assert work(bench.shape, "float32", Point("prefill", 512)) == one


def test_decode_has_the_rows_that_memory_holds_and_one() -> None:
    found = points([120, 1000], token_bytes=10, memory=10 * 128 * 20, most_rows=16)
    assert [(p.tokens, p.rows) for p in found if p.kind == "decode"] == [(120, 1), (120, 16), (1000, 1), (1000, 2)]
    assert [p.tokens for p in found if p.kind == "update"] == [120, 1000]


def test_what_does_not_fit_is_a_row_that_says_so(bench: Bench) -> None:
    whole, huge = Point("decode", 64, 2), Point("decode", 2**40)
    record = {"model": "tiny", **run(bench, [whole, huge, Point("prefill", 64), Point("update", 64)], rounds=2)}
    decode, failed, prefill, update = record["points"]
    assert "share" not in failed
    assert failed["error"].startswith("out of memory: ")
    for point in (decode, prefill, update):
        assert len(point["seconds"]) == len(point["share"]) == 2
        assert min(point["share"]) > 0
    ceilings = record["ceilings"]
    assert {len(ceilings["copy_bytes_per_s"]), len(ceilings["product_flops_per_s"])} == {3}
    around = sum(ceilings["copy_bytes_per_s"][:2]) / 2
    assert decode["share"][0] == pytest.approx(decode["work"] / decode["seconds"][0] / around)
    assert f"| decode | {2**40:,} | 1 | out of memory" in page(record)
    assert all(p.grad is None for p in bench.model.parameters())


def test_its_command_keeps_the_numbers_and_the_table(tmp_path: Path) -> None:
    out = tmp_path / "limits.json"
    limits.main(["--lengths", "32", "--rounds", "1", "--rows", "2", "--kv-memory", "0.1", "--out", str(out)])
    record = json.loads(out.read_text())
    assert [(p["kind"], p["rows"]) for p in record["points"]] == [
        ("decode", 1), ("decode", 2), ("prefill", 1), ("update", 1)
    ]  # fmt: skip
    assert out.with_suffix(".md").read_text().count("\n| decode |") == 2


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--model", "nano"], ["--lengths", "8x"], ["--kv-memory", "-1"]])
def test_bad_input_is_one_line_and_exit_2(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        limits.main(wrong)
    assert len([line for line in capsys.readouterr().err.splitlines() if "error:" in line]) == 1
