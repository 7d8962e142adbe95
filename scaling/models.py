"""From a model's name or path to its config and weights: built-in architectures, fetched models, directories."""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scaling.errors import CheckpointError, UsageError, first_line, unknown
from scaling.predict.shape import architecture, catalogue

HUB_TIMEOUT_SECONDS = 5.0

MAX_JSON_BYTES = 1 << 26
"""Of a `config.json` and its neighbours; what is longer is something else."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from.

    `config`: its Hugging Face `config.json`. `path`: the directory of weights and tokenizer, None for an architecture
    whose weights are random; where a server has the weights, of the tokenizer alone, if it is here. `digest`: sha256
    that identifies the weights (of the safetensors file; of the list of names and sha256s where there are several),
    None where they are random or served. `provenance`: what `scaling fetch` recorded of how the weights came here.
    """

    name: str
    config: dict[str, Any]
    path: Path | None
    weights: Literal["random", "checkpoint", "served"]
    digest: str | None = None
    provenance: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """For manifests: everything that says which model this is; no path, which means nothing elsewhere."""
        return {
            "name": self.name,
            "weights": self.weights,
            "digest": self.digest,
            "provenance": self.provenance,
            "config": self.config,
        }


def cache_dir() -> Path:
    """Where fetched models live: `$SCALING_HOME`, else `$XDG_CACHE_HOME/scaling`, else `~/.cache/scaling`."""
    if home := os.environ.get("SCALING_HOME"):
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "scaling"


def model_dir(name: str) -> Path:
    """Where `scaling fetch` puts the model of this name."""
    return cache_dir() / "models" / name


def resolve(model: str, *, weights: bool) -> Source:
    """The model that `model` names: a built-in architecture, or the path of a Hugging Face directory.

    A built-in name has random weights, which cost what trained ones cost, unless `weights` asks for real ones: then
    it must have been fetched. Raises `UsageError` for an unknown or unfetched name, `CheckpointError` for a directory
    that holds no checkpoint.
    """
    if model in catalogue():
        if not weights:
            return Source(model, architecture(model), None, "random")
        if not model_dir(model).is_dir():
            raise UsageError(f"the weights of {model!r} are not in the cache {cache_dir()}; run: scaling fetch {model}")
        return _checkpoint(model, model_dir(model))
    path = _path(model)
    if path.is_dir():
        return _checkpoint(path.resolve().name, path)
    if os.sep in model or model.startswith((".", "~")):
        raise UsageError(f"no directory {model!r}; expected one with config.json and *.safetensors, or a built-in name")
    raise unknown("model", model, catalogue())


def config_of(model: str) -> tuple[str, dict[str, Any]]:
    """(name, Hugging Face config) of an architecture, weights or not: a built-in name, the path of a `config.json` or
    of its directory, or a Hub repository `owner/name` where the Hub is reachable. Raises `UsageError` or
    `CheckpointError`.
    """
    if model in catalogue():
        return model, architecture(model)
    path = _path(model)
    if path.is_dir():
        return path.resolve().name, read_json(path / "config.json")
    if path.is_file():
        return path.resolve().parent.name if path.name == "config.json" else path.stem, read_json(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not model.startswith(".") and not model.endswith(".json"):
        return model, _hub_config(model)
    if os.sep in model or model.startswith((".", "~")) or model.endswith(".json"):
        raise UsageError(f"no file {model!r}; expected a config.json, its directory, or a built-in name")
    raise unknown("model", model, catalogue())


def _path(model: str) -> Path:
    """The path that a model's name would be; raises `UsageError` where the system takes it for none."""
    if not model:
        raise unknown("model", model, catalogue())
    try:
        path = Path(model).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, RuntimeError, ValueError) as error:  # too long or forbidden; no such user's home; a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"no model {reprlib.repr(model)}: {reason}; expected a built-in name, or the path of a config.json"
        ) from None
    return path


def _hub_config(repository: str) -> dict[str, Any]:
    from huggingface_hub import HfApi, hf_hub_download

    try:
        HfApi().model_info(
            repository, timeout=HUB_TIMEOUT_SECONDS
        )  # asks once, where the download would ask for minutes
        return read_json(Path(hf_hub_download(repository, "config.json")))
    except CheckpointError:
        raise
    except Exception as error:  # the HTTP library beneath, and so its errors, changes with the Hub client's version
        raise UsageError(
            f"the Hub does not give {repository}'s config.json ({first_line(error)}); give a built-in name, or the "
            "path of a config.json"
        ) from None


def _checkpoint(name: str, path: Path) -> Source:
    return Source(name, read_json(path / "config.json"), path, "checkpoint", weights_digest(path), _provenance(path))


def end_tokens(path: Path) -> tuple[int, ...]:
    """Ids that end a response, by the checkpoint's `generation_config.json`, else its `config.json`."""
    for name in ("generation_config.json", "config.json"):
        if (path / name).exists():
            ids = read_json(path / name).get("eos_token_id")
            if ids is not None:
                return tuple(int(id) for id in (ids if isinstance(ids, list) else [ids]))
    return ()


def _provenance(path: Path) -> dict[str, Any] | None:
    source = path / "source.json"
    return read_json(source) if source.exists() else None


def weights_digest(path: Path) -> str:
    """sha256 that identifies the safetensors of a directory; raises `CheckpointError` if it has none."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"no *.safetensors in {path}; other weight formats are not read")
    digests = {file.name: sha256(file) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values()))
    return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's directory; raises `CheckpointError`."""
    try:
        if (size := file.stat().st_size) > MAX_JSON_BYTES:
            raise CheckpointError(f"{file} has {size / 1e6:,.0f} MB; expected a JSON object as in a config.json")
        loaded = json.loads(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from None
    except RecursionError:
        raise CheckpointError(f"{file} nests lists or objects too deeply; expected a config.json") from None
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{file} holds {type(loaded).__name__}, expected a JSON object")
    return loaded
