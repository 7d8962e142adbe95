"""`scaling.plan`: the same question as the command line, asked by a program, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scaling
from scaling.errors import CheckpointError, ScalingError, UsageError
from scaling.planning import ask, plan
from scaling.predict.shape import architecture

H100 = {"gpu": "h100", "modes": "longcot"}


def means(lengths: Any = None, **options: Any) -> list[float]:
    return [each.thinking_tokens for each in plan(lengths, **(H100 | options))]


def test_lengths_are_numbers_text_or_several_of_them() -> None:
    assert means(8192) == means("8k") == means([8192]) == means(np.array([8192])) == [8192]
    assert means(["16k", 8192, "2k..4k"]) == [16384, 8192, 2048, 3072, 4096]


def test_without_lengths_they_are_those_of_the_command_line(tmp_path: Path) -> None:
    assert means() == means("8k..96k")
    recorded = tmp_path / "lengths.txt"
    recorded.write_text("1000\n2000\n6000\n")
    assert means(distribution=str(recorded)) == [3000]


def test_tokens_are_numbers_or_text() -> None:
    sizes = {"budget": 24576, "context_size": 4096, "state_size": 1536, "prompt_tokens": 1024}
    text = {"budget": "24k", "context_size": "4k", "state_size": "1.5k", "prompt_tokens": "1k"}
    assert ask(gpu="h100", **sizes) == ask(gpu="h100", **text)


def test_a_mode_and_several_are_modes_each_once() -> None:
    assert ask(gpu="h100", modes="delethink").modes == ("delethink",)
    assert ask(gpu="h100", modes=iter(["longcot", "delethink", "longcot"])).modes == ("longcot", "delethink")


@pytest.mark.parametrize(
    ("lengths", "says"),
    [
        ([], "no lengths"),
        ("", "a number of tokens is missing"),
        (0, "length 0 is not positive"),
        (2.5, "length 2.5 is no whole number"),
        ([math.nan], "length nan is no whole number"),
        (True, "length True is no whole number"),
        ([None], "length None is no whole number"),
        ([1 << 40], "is too large"),
        ([10**5000], "is too large"),
        (iter(int, 1), "length 0 is not positive"),
        (["8k"] * 257, "more than 256 lengths"),
    ],
)
def test_lengths_that_are_none_are_refused(lengths: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        plan(lengths, gpu="h100")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpuss": 8}, "unknown option 'gpuss'; did you mean gpus"),
        ({"gpus": "8"}, "gpus '8' is str; expected a whole number"),
        ({"gpus": 2.5}, "gpus 2.5 is float; expected a whole number"),
        ({"gpus": 10**5000}, "gpus of thousands of digits is too large"),
        ({"steps": 1.5}, "steps 1.5 is float"),
        ({"prompts": True}, "prompts True is bool"),
        ({"samples": None}, "samples None is NoneType"),
        ({"prefix_caching": 1}, "prefix_caching 1 is int; expected True or False"),
        ({"memory_fraction": math.nan}, "memory fraction nan"),
        ({"memory_fraction": 10**5000}, "memory fraction of thousands of digits"),
        ({"price": 10**400}, "no amount of money"),
        ({"price": "2.50"}, "price '2.50' is str; expected a number"),
        ({"head": 10**5000}, "head of thousands of digits"),
        ({"budget": 1 << 40}, "budget 1099511627776 is too large; give at most"),
        ({"budget": "1t"}, "budget: '1t' is no number of tokens"),
        ({"context_size": 2.5}, "context_size 2.5 is float; expected a whole number or text"),
        ({"modes": 3}, "modes 3 is int; expected text"),
        ({"modes": []}, "no mode; give one of longcot, delethink"),
        ({"modes": [["longcot"]]}, "unknown mode"),
        ({"calibrate": 3}, "calibrate 3 is int; expected text or a path"),
        ({"calibrate": "a\0b"}, "no run at"),
        ({"distribution": 3}, "distribution 3 is int; expected text"),
        ({"distribution": "a\0b"}, "names no distribution"),
        ({"model": 3}, "model 3 is int"),
        ({"weight_dtype": 3}, "weight_dtype 3 is int"),
        ({"placement": 3}, "placement 3 is int; expected text"),
        ({"carryover": "all"}, "unknown carryover 'all'"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ScalingError, match=says) as error:
        scaling.plan("8k", **({"gpu": "h100"} | options))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_a_quantised_model_says_how(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    for method, dtype in (({"quant_method": "fp8"}, "float8"), ({}, "bfloat16"), (None, "bfloat16")):
        config.write_text(json.dumps(architecture("tiny") | {"quantization_config": method}))
        assert ask(str(config), "h100").setup.precision.weights == dtype
    config.write_text(json.dumps(architecture("tiny") | {"quantization_config": "fp8"}))
    with pytest.raises(CheckpointError, match="quantization_config 'fp8'; expected an object"):
        ask(str(config), "h100")
