"""Configurations: which devices run the model, what each engine refuses, and that cells keep their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scaling.errors import UsageError
from scaling.measure.cells import Cell, RunConfig, cells_for
from scaling.measure.run import configure

SERVED = {"model": "tiny", "lengths": (1024,), "engine": "openai", "base_url": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize(
    ("given", "devices"),
    [
        ({}, 1),
        ({"devices": 8}, 8),  # which does what is not told
        ({"tensor_parallel": 2, "data_parallel": 4}, 8),
        ({"tensor_parallel": 2, "devices": 8}, 8),  # in a pipeline of four
    ],
)
def test_a_server_runs_on_as_many_devices_as_its_replicas_have(given, devices):
    assert RunConfig(**SERVED, **given).devices == devices


def test_devices_that_replicas_do_not_divide_are_refused_with_what_they_need():
    with pytest.raises(UsageError, match=r"^6 devices are not 2 replicas of 2; give --devices 4"):
        RunConfig(**SERVED, devices=6, tensor_parallel=2, data_parallel=2)


def test_replicas_in_this_process_are_refused_with_both_ways_that_work():
    with pytest.raises(UsageError) as refused:
        RunConfig("tiny", (1024,), engine="vllm", data_parallel=2)
    said = str(refused.value)
    assert "\n" not in said
    for way in ("--launcher local", "vllm serve --data-parallel-size 2", "--engine openai"):
        assert way in said


@pytest.mark.parametrize("given", [{"tensor_parallel": 2}, {"data_parallel": 2}])
@pytest.mark.parametrize("engine", [{"engine": "local"}, {"engine": "simulated", "gpu": "h100"}])
def test_engines_of_one_device_refuse_several(given, engine):
    with pytest.raises(UsageError, match="give --engine vllm or openai"):
        RunConfig("tiny", (1024,), **engine, **given)


def test_how_replicas_lie_makes_another_cell():
    def ids(**given):
        config = RunConfig(**SERVED, **given)
        return {cell.id for cell in cells_for(config, "full", (1024,), ("rollout",), weights="served", device="d")}

    assert not ids(tensor_parallel=2) & ids(data_parallel=2)


@pytest.mark.parametrize("run", ["demo", "vllm-tiny"])
def test_cells_of_earlier_runs_keep_their_names(run):
    manifest = json.loads((Path(__file__).parents[2] / "docs/runs" / run / "manifest.json").read_text())
    assert manifest["cells"]
    for data in manifest["cells"]:
        assert Cell.from_json(data).id == data["cell_id"]


def test_another_engine_takes_over_nothing_that_was_the_first_ones(tmp_path):
    like = RunConfig(**SERVED, tensor_parallel=2, data_parallel=4).to_json()
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "scaling-run", "schema_version": "1.0",
                                                        "config": like, "cells": []}))  # fmt: skip
    again = configure({"lengths": (2048,)}, like=tmp_path)
    assert (again.tensor_parallel, again.data_parallel, again.devices) == (2, 4, 8)
    placed = configure({"tensor_parallel": 4, "data_parallel": 1}, like=tmp_path)
    assert placed.devices == 4  # not the eight of before, which would double the device seconds
    assert configure({"data_parallel": 1, "devices": 4}, like=tmp_path).devices == 4
    local = configure({"engine": "local"}, like=tmp_path)
    assert (local.tensor_parallel, local.data_parallel, local.devices, local.base_url) == (1, 1, 1, None)


@pytest.mark.parametrize("given", [{"deadline": 5.0}, {"key_variable": "MY_KEY"}])
def test_what_only_a_server_heeds_is_refused_elsewhere(given):
    with pytest.raises(UsageError, match="go with --engine openai"):
        configure({"model": "tiny", **given})
    assert configure({"model": "tiny", "engine": "openai", "base_url": SERVED["base_url"], **given})
