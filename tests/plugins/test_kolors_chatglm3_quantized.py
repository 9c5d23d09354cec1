"""Weights of 8 and 4 bits: those of files that others wrote, and those made at load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kolors_chatglm3.architecture import Architecture
from kolors_chatglm3.byte_pieces import byte_pieces
from kolors_chatglm3.config import ChatGLM3
from kolors_chatglm3.encoder import ChatGLM3Encoder
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.errors import RecipeError, WeightsError
from kolors_kernel.values import Conditioning
from kolors_weights.quantizing import QuantizedLinear

WIDTHS = Architecture(
    num_layers=3,
    hidden_size=64,
    num_attention_heads=4,
    multi_query_group_num=2,
    kv_channels=16,
    ffn_hidden_size=128,
    padded_vocab_size=300,
)
LINEARS = ("query_key_value.weight", "dense.weight", "dense_h_to_4h.weight", "dense_4h_to_h.weight")
PROMPTS = ["", "a cat on a roof", "一只猫"]
Packed = tuple[NDArray[np.int8], NDArray[np.float16], NDArray[np.float64]]


def community(weight: NDArray[np.float64], bits: int) -> Packed:
    """Quantise as the files that are passed around are: integers, scales, and what they stand for."""
    scale = (np.abs(weight).max(axis=1) / (127 if bits == 8 else 7)).astype(np.float16)
    whole = np.clip(
        np.rint(weight / scale[:, None].astype(np.float64)), -128 if bits == 8 else -8, 127 if bits == 8 else 7
    )
    value = whole * scale[:, None].astype(np.float64)
    if bits == 8:
        return whole.astype(np.int8), scale, value
    nibbles = whole.astype(np.int64) % 16  # two's complement of four bits
    return (nibbles[:, 0::2] * 16 + nibbles[:, 1::2]).astype(np.uint8).view(np.int8), scale, value


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    encoder = ChatGLM3(architecture=WIDTHS).build(BuildContext(dtype="float64"))
    return {key: tensor.detach().half().double() for key, tensor in encoder.module.state_dict().items()}


def write(state: Mapping[str, Tensor], file: Path, bits: int, prefix: str = "") -> dict[str, Tensor]:
    """Write a single file with what such files hold besides, and return the weights it stands for."""
    stored: dict[str, Tensor] = {
        "encoder.final_layernorm.weight": torch.ones(64, dtype=torch.float16),
        "output_layer.weight": torch.zeros(300, 64, dtype=torch.float16),
        "rotary_pos_emb.inv_freq": torch.ones(4, dtype=torch.float16),
    }
    meant = dict(state)
    for key, tensor in state.items():
        if key.endswith(LINEARS) and bits < 16:
            whole, scale, value = community(tensor.numpy(), bits)
            stored[key], stored[f"{key}_scale"] = torch.from_numpy(whole), torch.from_numpy(scale)
            meant[key] = torch.from_numpy(value)
        else:
            stored[key] = tensor.half()
    save_file({prefix + key: tensor.contiguous() for key, tensor in stored.items()}, file)
    (file.parent / "tokenizer.model").write_bytes(byte_pieces())
    return meant


def build(file: Path, dtype: str = "float64", **settings: Any) -> ChatGLM3Encoder:
    given = {"path": file, "architecture": WIDTHS, "max_tokens": 32, **settings}
    return ChatGLM3.model_validate(given).build(BuildContext(dtype=dtype))


def encode(encoder: ChatGLM3Encoder) -> Conditioning:
    with torch.no_grad():
        return encoder.encode(PROMPTS)


def exact(meant: Mapping[str, Tensor]) -> Conditioning:
    encoder = ChatGLM3(architecture=WIDTHS, max_tokens=32).build(BuildContext(dtype="float64"))
    encoder.module.load_state_dict(dict(meant))
    return encode(encoder)


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


@pytest.mark.parametrize("weights", ["resident", "streamed"])
@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_single_files_load_for_what_they_stand_for(
    state: dict[str, Tensor], tmp_path: Path, bits: int, prefix: str, weights: str
) -> None:
    wanted = exact(write(state, tmp_path / "chatglm3.safetensors", bits, prefix))
    encoder = build(tmp_path / "chatglm3.safetensors", weights=weights)
    found = encode(encoder)
    assert error(found.tokens, wanted.tokens) <= 1e-12
    assert error(found.pooled, wanted.pooled) <= 1e-12
    quantised = [child for child in encoder.module.modules() if isinstance(child, QuantizedLinear)]
    layers = 1 if weights == "streamed" else 3
    assert len(quantised) == (0 if bits == 16 else 4 * layers)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_in_lower_precision_only_the_rounding_is_added(
    state: dict[str, Tensor], tmp_path: Path, bits: int, dtype: str
) -> None:
    meant = write(state, tmp_path / "chatglm3.safetensors", bits)
    found, wanted = encode(build(tmp_path / "chatglm3.safetensors", dtype)), exact(meant)
    write(meant, tmp_path / "plain.safetensors", 16)
    plain = encode(build(tmp_path / "plain.safetensors", dtype))
    assert error(found.tokens, wanted.tokens) <= 1.5 * error(plain.tokens, wanted.tokens) + 1e-6
    assert found.tokens.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("quantize", "largest"), [("int8", 0.02), ("int4", 0.25)])
def test_quantising_at_load_is_as_coarse_as_its_bits(
    state: dict[str, Tensor], tmp_path: Path, quantize: str, largest: float
) -> None:
    wanted = exact(write(state, tmp_path / "plain.safetensors", 16))
    encoder = build(tmp_path / "plain.safetensors", quantize=quantize)
    found = encode(encoder)
    assert largest / 30 < error(found.tokens, wanted.tokens) < largest
    with pytest.raises(RecipeError, match=rf"cannot be trained: its weights are quantised to {quantize[-1]} bits"):
        encoder.module.requires_grad_(True)
    assert not encoder.encode(PROMPTS).tokens.requires_grad
    encoder.freeze()
    assert encoder.report()["linear layers"] == f"not packed: its weights are quantised to {quantize[-1]} bits"


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_what_was_quantised_is_saved_small_and_loads_bit_for_bit(
    state: dict[str, Tensor], tmp_path: Path, quantize: str
) -> None:
    write(state, tmp_path / "plain.safetensors", 16)
    encoder = build(tmp_path / "plain.safetensors", "float32", quantize=quantize)
    encoder.save(tmp_path / "saved")
    again = ChatGLM3(path=tmp_path / "saved", max_tokens=32).build(BuildContext())
    assert torch.equal(encode(again).tokens, encode(encoder).tokens)
    assert (tmp_path / "saved/model.safetensors").stat().st_size < (tmp_path / "plain.safetensors").stat().st_size


def test_random_weights_can_be_quantised_for_tests() -> None:
    encoder = ChatGLM3.tiny().model_copy(update={"quantize": "int8"}).build(BuildContext())
    plain = ChatGLM3.tiny().build(BuildContext())
    assert 0 < error(encode(encoder).tokens, encode(plain).tokens) < 0.03


def test_what_is_quantised_is_not_quantised_again(state: dict[str, Tensor], tmp_path: Path) -> None:
    write(state, tmp_path / "chatglm3.safetensors", 8)
    with pytest.raises(WeightsError, match=r"chatglm3\.safetensors is quantised to 8 bits as it is"):
        build(tmp_path / "chatglm3.safetensors", quantize="int4")


def test_a_single_file_is_taken_for_the_released_model_where_nothing_says_otherwise(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    write(state, tmp_path / "chatglm3.safetensors", 8)
    config = ChatGLM3(path=tmp_path / "chatglm3.safetensors")
    assert config.spec().width == 4096
    with pytest.raises(WeightsError, match=r"\[192, 64\]|\[4608, 4096\]"):
        config.build(BuildContext())


def test_a_single_file_needs_a_tokenizer_beside_it_or_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    write(state, tmp_path / "chatglm3.safetensors", 8)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(WeightsError, match=r"no tokenizer.*setting 'tokenizer'"):
        build(tmp_path / "chatglm3.safetensors")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda weight, scale: (weight[:, :-1], scale), r"\[128, 63\] of torch.int8 .* should be \[128, 64\]"),
        (lambda weight, scale: (weight, scale[:-1]), r"with scales \[127\]"),
        (lambda weight, scale: (weight.short(), scale), r"of torch.int16"),
        (lambda weight, scale: (weight, scale * float("nan")), "weight_scale is not finite"),
    ],
    ids=["width", "scales", "dtype", "nan"],
)
def test_damaged_quantised_files_are_refused(
    state: dict[str, Tensor], tmp_path: Path, damage: Callable[..., tuple[Tensor, Tensor]], complaint: str
) -> None:
    from safetensors.torch import load_file

    file, key = tmp_path / "chatglm3.safetensors", "encoder.layers.1.self_attention.query_key_value.weight"
    write(state, file, 8)
    stored = load_file(file)
    weight, scale = damage(stored[key], stored[f"{key}_scale"])
    save_file({**stored, key: weight.contiguous(), f"{key}_scale": scale.contiguous()}, file)
    with pytest.raises(WeightsError, match=complaint):
        encode(build(file))


def test_scales_keep_their_precision_in_a_coarser_model(state: dict[str, Tensor], tmp_path: Path) -> None:
    write(state, tmp_path / "chatglm3.safetensors", 8)
    module = build(tmp_path / "chatglm3.safetensors", "bfloat16").module
    scales = {tensor.dtype for key, tensor in module.state_dict().items() if key.endswith("_scale")}
    assert scales == {torch.float16}
    assert module.embedding.word_embeddings.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("weights", ["resident", "streamed"])
@pytest.mark.parametrize("bits", [8, 4])
def test_every_quantised_layer_computes_by_the_op_of_the_recipe(
    state: dict[str, Tensor], tmp_path: Path, bits: int, weights: str
) -> None:
    write(state, tmp_path / "chatglm3.safetensors", bits)
    found = {}
    for name in ("reference", "torch", "auto"):
        encoder = build(tmp_path / "chatglm3.safetensors", weights=weights, quantized_linear={"type": name})
        found[name] = encode(encoder)
        layers = [child for child in encoder.module.modules() if isinstance(child, QuantizedLinear)]
        assert len(layers) >= 4
        assert all(layer.op is encoder.module.ops.quantized_linear for layer in layers)
    assert encoder.report()["quantized_linear"].startswith("torch")
    assert torch.equal(found["auto"].tokens, found["torch"].tokens)
    assert error(found["reference"].tokens, found["torch"].tokens) <= 1e-12


def test_layers_that_are_quantised_at_load_compute_by_the_op_of_the_recipe() -> None:
    tiny = {"architecture": WIDTHS, "max_tokens": 32, "quantize": "int4", "quantized_linear": {"type": "reference"}}
    encoder = ChatGLM3.model_validate(tiny).build(BuildContext())
    layers = [child for child in encoder.module.modules() if isinstance(child, QuantizedLinear)]
    assert len(layers) == 12
    assert all(layer.op is encoder.module.ops.quantized_linear for layer in layers)
    assert encoder.report()["quantized_linear"] == "ReferenceQuantizedLinear"
