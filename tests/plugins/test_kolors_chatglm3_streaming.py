from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kolors_chatglm3.architecture import Architecture
from kolors_chatglm3.config import ChatGLM3
from kolors_chatglm3.encoder import ChatGLM3Encoder
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from kolors_kernel import BuildContext
from kolors_kernel.errors import RecipeError, RunError, WeightsError
from kolors_kernel.values import Conditioning

PROMPTS = ["", "a cat on a roof", "一只猫"]
WIDTHS = Architecture(
    num_layers=4,
    hidden_size=48,
    num_attention_heads=4,
    multi_query_group_num=2,
    kv_channels=16,
    ffn_hidden_size=72,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ChatGLM3(architecture=WIDTHS, max_tokens=32).build(BuildContext()).save(tmp_path / "text_encoder")
    return tmp_path / "text_encoder"


def build(folder: Path, weights: str, dtype: str = "float32") -> ChatGLM3Encoder:
    config = ChatGLM3.model_validate({"path": folder, "weights": weights, "max_tokens": 32})
    return config.build(BuildContext(dtype=dtype))


def encode(encoder: ChatGLM3Encoder) -> Conditioning:
    with torch.no_grad():
        return encoder.encode(PROMPTS)


def rewrite(folder: Path, write: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write(state)


def as_half(folder: Path) -> None:
    rewrite(folder, lambda s: save_file({k: t.half() for k, t in s.items()}, folder / "model.fp16.safetensors"))


def as_pickles(folder: Path) -> None:
    """Write seven shards of float16, with the head and the prefix, as the model was released."""

    def write(state: dict[str, torch.Tensor]) -> None:
        whole = {f"transformer.{key}": tensor.half() for key, tensor in state.items()}
        whole["transformer.output_layer.weight"] = torch.zeros(268, 48, dtype=torch.float16)
        names = {key: f"pytorch_model-0000{1 + index % 7}-of-00007.bin" for index, key in enumerate(whole)}
        for name in set(names.values()):
            torch.save({key: tensor for key, tensor in whole.items() if names[key] == name}, folder / name)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    rewrite(folder, write)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("form", [lambda _: None, as_half, as_pickles], ids=["float32", "float16", "released"])
def test_streamed_and_resident_weights_give_the_same_bits(
    folder: Path, form: Callable[[Path], None], dtype: str
) -> None:
    form(folder)
    streamed = build(folder, "streamed", dtype)
    wanted = encode(build(folder, "resident", dtype))
    for _ in range(2):  # each pass reads anew
        found = encode(streamed)
        assert torch.equal(found.tokens, wanted.tokens)
        assert torch.equal(found.pooled, wanted.pooled)
        assert found.tokens.dtype == getattr(torch, dtype)


def test_no_more_than_a_layer_is_held(folder: Path) -> None:
    held = sum(tensor.numel() for tensor in build(folder, "streamed").module.state_dict().values())
    layer = build(folder, "resident").module.encoder.layers[0]
    assert held == sum(tensor.numel() for tensor in layer.state_dict().values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_memory_of_the_process_grows_by_a_layer_and_not_by_the_model(tmp_path: Path) -> None:
    """24 layers of 6 MiB in float32, stored as float16; the peak of a process never falls, so the streamed go first."""
    wide = WIDTHS.model_copy(update={"num_layers": 24, "hidden_size": 256, "ffn_hidden_size": 1792})
    ChatGLM3(architecture=wide, max_tokens=32).build(BuildContext(dtype="float16")).save(tmp_path)
    program = """
import sys
from kolors_chatglm3.config import ChatGLM3
from kolors_kernel import BuildContext

def peak_after(**settings):
    ChatGLM3.model_validate({"max_tokens": 32, **settings}).build(BuildContext()).encode(["a cat"])
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

start = peak_after(architecture=ChatGLM3.tiny().architecture)  # imports, and what torch allocates once
streamed = peak_after(path=sys.argv[1], weights="streamed")
print(streamed - start, peak_after(path=sys.argv[1]) - start)
"""
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    streamed, resident = map(float, said.split())
    assert streamed < 40
    assert resident > 120


def test_streamed_weights_do_not_train_and_are_not_saved(folder: Path, tmp_path: Path) -> None:
    encoder = build(folder, "streamed")
    assert not encoder.encode(PROMPTS).tokens.requires_grad
    with pytest.raises(RecipeError, match=r"cannot be trained: its weights are streamed from .*model\.safetensors"):
        encoder.module.requires_grad_(True)
    with pytest.raises(RunError, match="copy that"):
        encoder.save(tmp_path / "copy")
    encoder.freeze()
    assert "not packed: its weights are streamed" in encoder.report()["linear layers"]
    assert torch.equal(encode(encoder).tokens, encode(build(folder, "resident")).tokens)


@pytest.mark.parametrize("key", ["encoder.layers.2.mlp.dense_4h_to_h.weight", "embedding.word_embeddings.weight"])
def test_a_weight_that_is_no_number_is_named_where_it_is_read(folder: Path, key: str) -> None:
    def damage(state: dict[str, torch.Tensor]) -> None:
        state[key][:, 5] = float("nan")
        save_file(state, folder / "model.safetensors")

    rewrite(folder, damage)
    with pytest.raises(WeightsError, match=rf"model\.safetensors: {key} is not finite"):
        encode(build(folder, "streamed"))


def test_keys_that_do_not_fit_are_named_before_anything_is_encoded(folder: Path) -> None:
    def damage(state: dict[str, torch.Tensor]) -> None:
        del state["encoder.layers.3.mlp.dense_4h_to_h.weight"]
        save_file(state, folder / "model.safetensors")

    rewrite(folder, damage)
    with pytest.raises(WeightsError, match=r"1 missing: encoder\.layers\.3\.mlp\.dense_4h_to_h\.weight"):
        build(folder, "streamed")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"weights": "streamed"}, "name them in path"),
        ({"weights": "streamed", "quantize": "int8", "path": "."}, "quantize is for resident weights"),
    ],
)
def test_settings_that_do_not_go_together_say_why(settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ChatGLM3.model_validate(settings)
