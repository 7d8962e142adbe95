"""The study of what engines say: agreement, the gap where they part, and whose log-probabilities they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.rollout import Sampling, rollout
from studies.engine_parity import ENVIRONMENTS, NEAR, compared, main, rescored, run, table


def test_transformers_says_what_the_local_engine_says(chat_model: Path) -> None:
    record = run(chat_model, ["transformers"])
    assert [(row["engine"], row["environment"]) for row in record["rows"]] == [
        (engine, environment.name) for engine in ("local", "transformers") for environment in ENVIRONMENTS
    ]
    for row in record["rows"]:
        assert row["tokens"] >= row["same_tokens"] > 0
        assert row["gap"] is None or row["gap"] < NEAR
        assert row["logprob_difference"] < 1e-4
    assert table(record).count("| transformers |") == 2


def test_a_difference_is_counted_and_its_gap_told(chat_model: Path) -> None:
    decoder = Decoder.load(chat_model)
    engine = LocalEngine(decoder, max_sequences=2, max_length=256)
    ours = rollout(engine, ENVIRONMENTS[0], [[5, 6, 7]] * 2, sampling=Sampling(0.0))
    theirs = rollout(engine, ENVIRONMENTS[0], [[5, 6, 7]] * 2, sampling=Sampling(0.0))
    (chunk,) = theirs[0].chunks
    wrong = (*chunk.response[:9], (chunk.response[9] + 1) % 258, *chunk.response[10:])
    theirs[0].chunks = [replace(chunk, response=wrong)]
    found = compared(decoder, ours, theirs)
    assert (found["tokens"], found["same_tokens"], found["differences"]) == (320, 9 + 160, 1)
    assert found["gap"] > 0


def test_log_probabilities_of_another_distribution_are_seen(chat_model: Path) -> None:
    decoder = Decoder.load(chat_model)
    engine = LocalEngine(decoder, max_sequences=2, max_length=256)
    assert rescored(decoder, rollout(engine, ENVIRONMENTS[1], [[5, 6, 7]], sampling=Sampling(0.6))) < 1e-4
    assert rescored(decoder, rollout(engine, ENVIRONMENTS[1], [[5, 6, 7]], sampling=Sampling(1.0))) > 1e-2


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["smollm2-135m", "--engines", "wllm"], ["no-such-model"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "unknown" in capsys.readouterr().err
