"""Checkpoints: a Hugging Face directory that everything loads, with what it takes to go on as if never interrupted."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scaling.decoder import Decoder
from scaling.errors import CheckpointError, StoreError, first_line
from scaling.files import publish
from scaling.models import read_json
from scaling.results import SCHEMA_VERSION
from trainer.problems import Questions
from trainer.ranks import Ranks, like, whole, whole_weights
from trainer.recipe import Recipe

FOLDER, STATE, OPTIMIZER = "checkpoints", "trainer.json", "optimizer.safetensors"
_NAME = re.compile(r"step-(\d{6,})")
_RNG = "rng"


@dataclass(frozen=True, slots=True)
class Progress:
    """`step`: updates of the policy's round done. `asked`: problems taken so far, so where the data goes on."""

    step: int = 0
    asked: int = 0


def save(
    run: Path,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    questions: Questions,
    done: Progress,
    recipe: Recipe,
    ranks: Ranks,
) -> Path:
    """Writes the checkpoint of this step, whole or not at all, and drops all but the newest; its path.

    One that is there already is the same and stays. All ranks call it, the lead writes what they hold together, so
    that any number of them can go on from it. Raises `StoreError` where it cannot be written.
    """
    path = run / FOLDER / f"step-{done.step:06d}"
    if ranks.told(path.exists()):
        return path
    weights = {name: tensor.cpu() for name, tensor in whole_weights(decoder) if ranks.lead}
    state = {name: tensor.cpu().contiguous() for name, tensor in _state_of(decoder, optimizer) if ranks.lead}
    if not ranks.lead:
        return path
    pending = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        decoder.save(pending, weights.items())
        questions.save_tokenizer(pending)
        generation = {"eos_token_id": list(questions.eos)}
        (pending / "generation_config.json").write_text(json.dumps(generation) + "\n")
        (pending / "trainer").mkdir()
        save_file(state, pending / "trainer" / OPTIMIZER)
        progress = {"schema_version": SCHEMA_VERSION, **asdict(done), "recipe": recipe.to_json()}
        (pending / "trainer" / STATE).write_text(json.dumps(progress) + "\n")
        publish(pending, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error, "earlier checkpoints are whole") from None
    finally:
        shutil.rmtree(pending, ignore_errors=True)
    for old in checkpoints(run)[: -recipe.keep_checkpoints]:
        going = old.with_name(f".{old.name}.tmp")  # a kill in the middle must not leave what looks whole
        old.rename(going)
        shutil.rmtree(going, ignore_errors=True)
    return path


def cannot_write(path: Path, error: Exception, rest: str) -> StoreError:
    """Of a full disk, a limit, a directory that is not ours; safetensors has an error of its own for them."""
    return StoreError(f"cannot write {path}: {getattr(error, 'strerror', None) or first_line(error)}; {rest}")


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first; what a killed writer left half-written is none."""
    found = [(int(match[1]), path) for path in (run / FOLDER).glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest(run: Path) -> Path:
    """The checkpoint to go on from; raises `CheckpointError` if there is none."""
    if not (found := checkpoints(run)):
        raise CheckpointError(f"{run} has no checkpoint to resume from; start it anew in another directory")
    return found[-1]


def recipe_of(path: Path, begun: Recipe) -> Recipe:
    """The recipe by which the checkpoint was trained, which a resumed run may have changed from how it had `begun`."""
    stored = read_json(path / "trainer" / STATE).get("recipe")
    return begun if stored is None else Recipe.from_json(stored)


def restore(path: Path, decoder: Decoder, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts optimizer and random numbers where they were; the weights are `Decoder.load`'s business.

    Raises `CheckpointError` for what a trainer did not write, or wrote for another architecture.
    """
    state = read_json(path / "trainer" / STATE)
    parameters = dict(decoder.named_parameters())
    try:
        with safe_open(path / "trainer" / OPTIMIZER, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        done = Progress(int(state["step"]), int(state["asked"]))
        torch.set_rng_state(stored.pop(_RNG))
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is no trainer's checkpoint, or damaged: {error}") from None
    for key, tensor in stored.items():
        name, _, kind = key.rpartition("/")
        if name not in parameters or (tensor.ndim and tensor.shape != parameters[name].shape):
            raise CheckpointError(f"{path} was written for another architecture: its {key} fits no parameter here")
        # A fused optimizer counts its steps, which are not sharded, on the parameter's device.
        there = tensor.to(parameters[name].device) if kind == "step" else like(parameters[name], tensor)
        optimizer.state[parameters[name]][kind] = there
    return done


def _state_of(decoder: Decoder, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Everything beside the weights as tensors, which need no pickle: `parameter/kind` of the optimizer, and `rng`."""
    for name, parameter in decoder.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            yield f"{name}/{kind}", whole(value.detach())
    yield _RNG, torch.get_rng_state()
