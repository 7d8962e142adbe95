"""Names and paths of models."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from scaling.errors import CheckpointError, UsageError
from scaling.models import MAX_JSON_BYTES, cache_dir, config_of, end_tokens, model_dir, read_json, resolve


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "home"))


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SCALING_HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / ".cache" / "scaling"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "scaling"
    monkeypatch.setenv("SCALING_HOME", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"


def test_a_built_in_name_is_an_architecture_with_random_weights() -> None:
    source = resolve("tiny", weights=False)
    assert (source.path, source.weights, source.digest) == (None, "random", None)
    assert source.config["model_type"] == "llama"


@pytest.mark.usefixtures("home")
def test_real_weights_of_a_name_must_have_been_fetched() -> None:
    with pytest.raises(UsageError, match="run: scaling fetch smollm2-135m"):
        resolve("smollm2-135m", weights=True)


@pytest.mark.usefixtures("home")
def test_a_fetched_name_has_its_weights_and_where_they_came_from(chat_model: Path) -> None:
    shutil.copytree(chat_model, model_dir("smollm2-135m"))
    (model_dir("smollm2-135m") / "source.json").write_text('{"source": "a test"}')
    source = resolve("smollm2-135m", weights=True)
    weights = (chat_model / "model.safetensors").read_bytes()
    assert (source.weights, source.digest) == ("checkpoint", hashlib.sha256(weights).hexdigest())
    assert json.loads(json.dumps(source.record()))["provenance"] == {"source": "a test"}


def test_a_path_has_real_weights_either_way(chat_model: Path) -> None:
    for weights in (True, False):
        source = resolve(str(chat_model), weights=weights)
        assert (source.name, source.path, source.weights) == ("bytes", chat_model, "checkpoint")


def test_the_digest_of_several_files_changes_with_any_of_them(chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "sharded"
    shutil.copytree(chat_model, path)
    (path / "model-2.safetensors").write_bytes(b"second")
    before = resolve(str(path), weights=True).digest
    (path / "model-2.safetensors").write_bytes(b"other")
    assert resolve(str(path), weights=True).digest != before


def test_unknown_names_and_missing_directories_say_so() -> None:
    with pytest.raises(UsageError, match="unknown model 'smollm2-135'; did you mean smollm2-135m"):
        resolve("smollm2-135", weights=False)
    with pytest.raises(UsageError, match=r"no directory './nowhere'"):
        resolve("./nowhere", weights=True)


@pytest.mark.parametrize("name", ["~nouser/model", "m" * 5000, "null\0byte", ""])
def test_what_can_be_no_path_is_no_model(name: str) -> None:
    for look_up in (config_of, lambda name: resolve(name, weights=False)):
        with pytest.raises(UsageError) as error:
            look_up(name)
        assert str(error.value).startswith(("no model '", "unknown model ''"))
        assert len(str(error.value)) < 2000
        assert "\0" not in str(error.value)


def test_json_that_nests_without_end_or_is_something_huge_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="nests lists or objects too deeply"):
        read_json(file)
    with file.open("wb") as stream:
        stream.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(CheckpointError, match="has 67 MB; expected a JSON object"):
        read_json(file)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "cannot read .*config.json"),
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", "[]", "holds list, expected a JSON object"),
        ("model.safetensors", None, "no \\*.safetensors in"),
    ],
)
def test_a_directory_that_is_no_checkpoint(
    chat_model: Path, tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    path = tmp_path / "broken"
    shutil.copytree(chat_model, path)
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        resolve(str(path), weights=True)


def test_the_generation_config_says_what_ends_a_response(chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "ends"
    shutil.copytree(chat_model, path)
    assert end_tokens(path) == (1,)
    (path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert end_tokens(path) == (5, 6)
