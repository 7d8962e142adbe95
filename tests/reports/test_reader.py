"""The page on which traces are read: complete, filterable, harmless, and quick with very many."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from typing import Any

import pytest

from reports.reader import TOGETHER, reader

ATTACK = "</script><script>alert(1)</script>\x1b[31m\x00\u202e"


def record(number: int, **given: Any) -> dict[str, Any]:
    chunk = {"prompt": [1], "response": [1, 2], "carried": "before", "text": "after", "finish": "stop"}
    plain = {
        "environment": "delethink",
        "problem": {"id": f"sum-{number}", "question": "2 + 3?", "answer": "5"},
        "sample": 0,
        "thinking_tokens": 2,
        "answer": "5",
        "score": 1.0,
        "error": None,
        "chunks": [chunk],
    }
    return plain | given


def listed(page: str) -> list[list[Any]]:
    (text,) = re.findall(r'id="index">(.*?)</script>', page, re.S)
    return json.loads(text)


def texts(page: str) -> list[dict[str, Any]]:
    blocks = re.findall(r'id="block-\d+">(.*?)</script>', page, re.S)
    return [text for block in blocks for text in json.loads(gzip.decompress(base64.b64decode(block)))]


def test_every_trace_is_listed_with_its_outcome_and_its_text_lies_at_the_same_place():
    given = [
        record(0),
        record(1, score=0.0),
        record(2, answer=None, score=0.0),
        record(3, error="the server died", score=None, answer=None, chunks=[]),
    ]
    page = reader({"first": given})
    assert [line[3] for line in listed(page)] == ["right", "wrong", "unanswered", "failed"]
    assert [line[1] for line in listed(page)] == ["sum-0", "sum-1", "sum-2", "sum-3"]
    assert [text["error"] for text in texts(page)] == [None, None, None, "the server died"]
    assert texts(page)[0]["chunks"] == [["before", "after", 2, "stop"]]


def test_traces_of_several_runs_are_told_apart():
    page = reader({"first": [record(0)], "second": [record(0, arm="longcot")]})
    assert [line[0] for line in listed(page)] == ["first · delethink", "second · longcot"]


def test_blocks_hold_as_many_texts_as_the_script_expects():
    page = reader({"first": (record(number) for number in range(2 * TOGETHER + 1))})
    assert f'data-together="{TOGETHER}"' in page
    assert page.count('id="block-') == 3
    assert [line[1] for line in listed(page)] == [f"sum-{number}" for number in range(2 * TOGETHER + 1)]


@pytest.mark.parametrize("place", ["arm", "problem", "text", "answer", "error"])
def test_model_text_can_neither_run_nor_hide(place: str):
    chunk = {"prompt": [], "response": [1], "carried": ATTACK, "text": ATTACK, "finish": "length"}
    problem = {"id": ATTACK, "question": ATTACK, "answer": ATTACK}
    changed: dict[str, Any] = {"text": {"chunks": [chunk]}, "problem": {"problem": problem}}
    page = reader({"first": [record(0, **changed.get(place, {place: ATTACK}))]})
    assert "alert(1)</script>" not in page
    assert not re.search(r"[\x00\x1b\u202e]", page + json.dumps(texts(page), ensure_ascii=False))


def test_nothing_but_its_own_script_may_run():
    page = reader({"first": [record(0)]})
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert "://" not in page


def test_a_run_without_traces_says_so():
    assert "There are no traces." in reader({"first": []})
