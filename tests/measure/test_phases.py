"""Training phases: both methods put the same chunks through the model, and agree on what a second is."""

from __future__ import annotations

import pytest

from scaling.decoder import Decoder
from scaling.engines.local import LocalEngine
from scaling.measure.cells import RunConfig, cells_for
from scaling.measure.phases import Trained, measure_phase
from scaling.predict.shape import architecture

TRACES = 3


@pytest.fixture(scope="module")
def trained():
    model = Decoder.from_config(architecture("tiny") | {"num_hidden_layers": 1}, seed=0)
    engine = LocalEngine(model, kv_bytes=2**24, max_sequences=2, max_length=256)
    yield Trained(model, engine, "cpu")
    engine.close()


def measured(trained, phase, mode, method):
    config = RunConfig("tiny", (256,), (mode,), context_size=64, state_size=32, head=8, traces=TRACES, phases=(phase,))
    [cell] = cells_for(config, method, (256,), (phase,), weights="random", device="cpu")
    return measure_phase(trained, cell, seed=0), cell


@pytest.mark.parametrize("phase", ["logprob", "update"])
@pytest.mark.parametrize("mode", ["longcot", "delethink"])
def test_a_full_measurement_is_all_chunks_and_its_seconds_are_those_from_outside(trained, phase, mode):
    found, cell = measured(trained, phase, mode, "full")
    assert found.processed_tokens == TRACES * sum(s.prompt + s.decode - 1 for s in cell.segments)
    assert found.wall_seconds == found.elapsed_seconds > 0


@pytest.mark.parametrize("phase", ["logprob", "update"])
@pytest.mark.parametrize("mode", ["longcot", "delethink"])
def test_a_profile_takes_each_length_once_and_counts_it_as_often_as_traces_have_it(trained, phase, mode):
    found, cell = measured(trained, phase, mode, "profile")
    lengths = {(s.prompt, s.decode) for s in cell.segments}
    assert found.processed_tokens == sum(prompt + decode - 1 for prompt, decode in lengths)
    most = max([(s.prompt, s.decode) for s in cell.segments].count(length) for length in lengths)
    assert found.elapsed_seconds < found.wall_seconds <= TRACES * most * found.elapsed_seconds


def test_no_gradient_is_left_behind(trained):
    measured(trained, "update", "delethink", "profile")
    assert all(parameter.grad is None for parameter in trained.model.parameters())
