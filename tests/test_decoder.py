"""The decoder computes what `transformers` computes, reads and writes its checkpoints, and trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from scaling.decoder import Decoder
from scaling.errors import CheckpointError

SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 101,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama tied, llama3 scaling": {"model_type": "llama", "tie_word_embeddings": True, "rope_scaling": LLAMA3},
    "llama, linear scaling": {"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6},
    "qwen2 tied": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3, yarn": {"model_type": "qwen3", "rope_scaling": YARN},
    "qwen3, new-style rope": {"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
}
LENGTHS = [33, 1, 150, 150]


def config_of(name: str) -> dict[str, Any]:
    config = {"tie_word_embeddings": False, **SIZES, **CONFIGS[name]}
    return {"architectures": [f"{config['model_type'].capitalize()}ForCausalLM"], **config}


def random_model(name: str) -> Decoder:
    """Weights large enough, vectors included, that every part shows in the logits."""
    model = Decoder.from_config(config_of(name), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def tokens() -> torch.Tensor:
    return torch.randint(SIZES["vocab_size"], (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))


def reference_logits(path: Path, dtype: torch.dtype) -> torch.Tensor:
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    with torch.no_grad():
        return torch.cat([reference(part[None]).logits[0] for part in tokens().split(LENGTHS)]).float()


def logits(model: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden(tokens(), LENGTHS)).float()


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_logits_match_transformers(name: str, tmp_path: Path) -> None:
    random_model(name).save(tmp_path)
    torch.testing.assert_close(
        logits(Decoder.load(tmp_path)), reference_logits(tmp_path, torch.float32), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_bf16_error_is_no_larger_than_that_of_transformers(name: str, tmp_path: Path) -> None:
    random_model(name).save(tmp_path)
    exact = reference_logits(tmp_path, torch.float32)
    ours = (logits(Decoder.load(tmp_path, dtype=torch.bfloat16)) - exact).square().mean().sqrt()
    theirs = (reference_logits(tmp_path, torch.bfloat16) - exact).square().mean().sqrt()
    assert ours <= theirs


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    model = random_model("qwen3, yarn")
    model.save(tmp_path)
    again = Decoder.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    for (name, before), (_, after) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(before, after), name


def test_several_shards_load_as_one(tmp_path: Path) -> None:
    model = random_model("qwen2")
    model.save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(stored)
    save_file({n: stored[n] for n in names[:7]}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({n: stored[n] for n in names[7:]}, tmp_path / "model-00002-of-00002.safetensors")
    assert torch.equal(logits(Decoder.load(tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        (lambda t: t.update({"model.extra": torch.ones(1)}), r"unexpected tensor 'model\.extra'"),
        (lambda t: t.update({"model.norm.weight": torch.ones(5)}), r"'model\.norm\.weight' has shape \[5\], expected"),
    ],
)
def test_a_damaged_checkpoint_names_the_tensor(damage: Any, message: str, tmp_path: Path) -> None:
    random_model("qwen2").save(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    damage(stored)
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Decoder.load(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    random_model("qwen2").save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable"):
        Decoder.load(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"model_type": "mamba"})])
def test_a_directory_without_a_supported_config_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        Decoder.load(tmp_path)


def test_an_unsupported_rope_scaling_is_refused() -> None:
    with pytest.raises(CheckpointError, match="longrope"):
        Decoder.from_config({**config_of("qwen2"), "rope_scaling": {"rope_type": "longrope", "factor": 4.0}})


def test_the_seed_decides_random_weights() -> None:
    config = config_of("qwen2")
    one, same, other = (Decoder.from_config(config, seed=seed).head for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(0.02, rel=0.05)


def test_recomputing_activations_gives_the_same_gradients() -> None:
    model = random_model("qwen3, new-style rope")
    gradients = []
    for checkpoint in (False, True):
        model.zero_grad()
        hidden = model.hidden(tokens(), LENGTHS, checkpoint=checkpoint)
        torch.logsumexp(model.logits(hidden), -1).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, recomputed)
        assert plain.abs().sum() > 0


def test_packed_sequences_do_not_see_each_other() -> None:
    model = random_model("llama with biases")
    changed = tokens()
    changed[: LENGTHS[0]] = 0
    with torch.no_grad():
        before = model.hidden(tokens(), LENGTHS)[LENGTHS[0] :]
        after = model.hidden(changed, LENGTHS)[LENGTHS[0] :]
    assert torch.equal(before, after)
