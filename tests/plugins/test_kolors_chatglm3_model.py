from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_chatglm3.architecture import RELEASED, Architecture
from kolors_chatglm3.byte_pieces import byte_pieces
from kolors_chatglm3.config import ChatGLM3
from kolors_chatglm3.encoder import ChatGLM3Encoder
from kolors_chatglm3.model import ChatGLM3Model, Ops
from kolors_chatglm3.slots import Slots
from kolors_chatglm3.tokenizer import TruncationWarning
from kolors_ops.rms_norm.reference import ReferenceRMSNorm
from kolors_ops.rotary.reference import ReferenceRotary
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.values import Conditioning

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # diffusers

# Heads are wider together than the model, and there are more groups than one: no two widths are alike by chance.
SMALL = {
    "num_layers": 3,
    "hidden_size": 40,
    "num_attention_heads": 6,
    "multi_query_group_num": 2,
    "kv_channels": 16,
    "ffn_hidden_size": 56,
    "padded_vocab_size": 300,
}
OPS = Ops(ReferenceRMSNorm(), ReferenceRotary())
LENGTHS = (1, 20, 254, 300, 0)
PROMPTS = [("The quick brown fox; " * 20)[:length] for length in LENGTHS]  # a byte is a token


def peer_model(folder: Path) -> Any:
    """Make diffusers' ChatGLM with the small widths, random in all it has, and save it with its tokenizer."""
    from diffusers.pipelines.kolors import ChatGLMModel
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig

    config = ChatGLMConfig(**SMALL, add_qkv_bias=True, multi_query_attention=True, seq_length=600)
    config.original_rope = True
    model = ChatGLMModel(config, empty_init=False)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.3, generator=generator)
    model.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(byte_pieces())
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("chatglm")
    peer_model(made)
    return made


def encode(folder: Path, dtype: str, prompts: list[str], slots: int = 256) -> tuple[Tensor, Tensor]:
    encoder = ChatGLM3(path=folder, max_tokens=slots).build(BuildContext(dtype=dtype))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        found = encoder.encode(prompts)
    return spread(found), found.pooled


def spread(found: Conditioning) -> Tensor:
    """Repeat each row as often as its key bias says that it stands for, and leave out what is not attended."""
    if found.key_bias is None:
        return found.tokens
    times = found.key_bias.exp().round().long()
    return torch.stack([row.repeat_interleave(n, dim=0) for row, n in zip(found.tokens, times, strict=True)])


def peer_encode(folder: Path, dtype: torch.dtype, prompts: list[str], slots: int = 256) -> tuple[Tensor, Tensor]:
    """Do what diffusers' KolorsPipeline does with its tokenizer and text encoder."""
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer

    model = ChatGLMModel.from_pretrained(folder, dtype=dtype)
    tokenizer = ChatGLMTokenizer(vocab_file=str(folder / "tokenizer.model"))
    inputs = tokenizer(prompts, padding="max_length", max_length=slots, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    return hidden[-2].permute(1, 0, 2), hidden[-1][-1]


def error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture
def exact_peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let diffusers compute in float64 the two parts it always does in float32: mean squares and rotation angles."""
    from diffusers.pipelines.kolors import text_encoder

    def norm(self: Any, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def table(self: Any, seq_len: int, n_elem: int, **_: Any) -> Tensor:
        angles = torch.arange(seq_len)[:, None] * 10000.0 ** -(torch.arange(0, n_elem, 2, dtype=torch.float64) / n_elem)
        return torch.stack((angles.cos(), angles.sin()), -1)

    monkeypatch.setattr(text_encoder.RMSNorm, "forward", norm)
    monkeypatch.setattr(text_encoder.RotaryEmbedding, "forward_impl", table)
    yield


def test_counts_the_released_parameters_less_head_and_final_norm() -> None:
    with torch.device("meta"):
        module = ChatGLM3Model(RELEASED, OPS)
    assert sum(weight.numel() for weight in module.parameters()) == 6_243_584_000 - 65024 * 4096 - 4096 == 5_977_241_600


def test_keys_are_those_of_the_released_files(folder: Path) -> None:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        released = set(file.keys())
    ours = set(ChatGLM3Model(Architecture(**SMALL), OPS).state_dict())
    assert released - ours == {"encoder.final_layernorm.weight", "output_layer.weight", "rotary_pos_emb.inv_freq"}
    assert not ours - released


def test_a_mixed_batch_equals_diffusers_in_float32(folder: Path) -> None:
    ours, theirs = encode(folder, "float32", PROMPTS), peer_encode(folder, torch.float32, PROMPTS)
    assert ours[0].shape == (5, 256, 40)
    assert error(ours[0], theirs[0]) <= 1e-5
    assert error(ours[1], theirs[1]) <= 1e-5


@pytest.mark.parametrize("index", range(len(PROMPTS)), ids=[f"{length}-tokens" for length in LENGTHS])
def test_each_prompt_equals_diffusers_in_float64_where_diffusers_is(folder: Path, index: int, exact_peer: None) -> None:
    prompt = [PROMPTS[index]]
    ours, theirs = encode(folder, "float64", prompt), peer_encode(folder, torch.float64, prompt)
    assert error(ours[0], theirs[0]) <= 1e-9
    assert error(ours[1], theirs[1]) <= 1e-9


def test_diffusers_as_it_is_stays_within_its_float32_parts(folder: Path) -> None:
    # Its angles are float32: up to 255 * 2^-24 off at the last position.
    ours, theirs = encode(folder, "float64", PROMPTS), peer_encode(folder, torch.float64, PROMPTS)
    assert error(ours[0], theirs[0]) <= 1e-5
    assert error(ours[1], theirs[1]) <= 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_as_near_to_the_truth_as_diffusers(folder: Path, dtype: str) -> None:
    truth = encode(folder, "float64", PROMPTS)
    ours, theirs = encode(folder, dtype, PROMPTS), peer_encode(folder, getattr(torch, dtype), PROMPTS)
    for found, other, wanted in zip(ours, theirs, truth, strict=True):
        assert (found - wanted).norm() <= 1.2 * (other - wanted).norm()


def test_longer_text_is_read_with_more_slots(folder: Path, exact_peer: None) -> None:
    long = [PROMPTS[3], "short"]
    ours, theirs = encode(folder, "float64", long, 512), peer_encode(folder, torch.float64, long, 512)
    assert ours[0].shape == (2, 512, 40)
    assert error(ours[0], theirs[0]) <= 1e-9
    assert error(ours[1], encode(folder, "float64", long, 302)[1]) <= 1e-9  # 300 and the prefix just fit


def formula(module: ChatGLM3Model, ids: list[int], slots: int) -> tuple[Tensor, Tensor]:
    """Compute one prompt slot by slot in float64 from the paper's formulas, with neither masks nor batches."""
    pads, architecture = slots - len(ids), module.architecture
    weight = {name: value.double() for name, value in module.state_dict().items()}
    heads, groups, width = (
        architecture.num_attention_heads,
        architecture.multi_query_group_num,
        architecture.kv_channels,
    )

    def norm(x: Tensor, by: Tensor) -> Tensor:
        return x / (x.square().mean() + 1e-5).sqrt() * by

    def turned(x: Tensor, position: int) -> Tensor:
        out = x.clone()
        for pair in range(width // 4):
            angle = torch.tensor(position * 10000.0 ** (-2 * pair / (width // 2)), dtype=torch.float64)
            a, b = x[:, 2 * pair], x[:, 2 * pair + 1]
            out[:, 2 * pair], out[:, 2 * pair + 1] = (
                a * angle.cos() - b * angle.sin(),
                b * angle.cos() + a * angle.sin(),
            )
        return out

    rows = [weight["embedding.word_embeddings.weight"][token] for token in [0] * pads + ids]
    states = [torch.stack(rows)]
    for index in range(architecture.num_layers):
        layer = {key.split(".", 3)[3]: value for key, value in weight.items() if f"layers.{index}." in key}
        parts = []
        for slot, row in enumerate(rows):
            qkv = layer["self_attention.query_key_value.weight"] @ norm(row, layer["input_layernorm.weight"])
            qkv = (qkv + layer["self_attention.query_key_value.bias"]).view(-1, width)
            position = max(slot - pads, 0)
            q, k, v = qkv.split((heads, groups, groups))
            parts.append((turned(q, position), turned(k, position), v))
        for slot, row in enumerate(list(rows)):
            seen = range(slots) if slot < pads else range(pads, slot + 1)
            mixed = []
            for head in range(heads):
                group = head // (heads // groups)
                keys = torch.stack([parts[other][1][group] for other in seen])
                scores = (keys @ parts[slot][0][head] / width**0.5).softmax(0)
                mixed.append(scores @ torch.stack([parts[other][2][group] for other in seen]))
            row = row + layer["self_attention.dense.weight"] @ torch.cat(mixed)
            gate, value = (
                layer["mlp.dense_h_to_4h.weight"] @ norm(row, layer["post_attention_layernorm.weight"])
            ).chunk(2)
            rows[slot] = row + layer["mlp.dense_4h_to_h.weight"] @ (gate * gate.sigmoid() * value)
        states.append(torch.stack(rows))
    return states[-2], states[-1][-1]


@pytest.mark.parametrize("text", ["", "猫", "a cat"])
def test_equals_the_formula_in_float64(folder: Path, text: str) -> None:
    encoder = ChatGLM3(path=folder, max_tokens=9).build(BuildContext(dtype="float64"))
    wanted = formula(encoder.module, encoder.tokenizer.ids([text])[0], 9)
    found = encoder.encode([text])
    assert error(spread(found)[0], wanted[0]) <= 1e-12
    assert error(found.pooled[0], wanted[1]) <= 1e-12


def tiny(slots: int, dtype: str = "float64") -> ChatGLM3Encoder:
    return ChatGLM3.tiny().model_copy(update={"max_tokens": slots}).build(BuildContext(dtype=dtype))


@given(st.lists(st.text(max_size=15), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_real_rows_do_not_depend_on_the_amount_of_padding(prompts: list[str]) -> None:
    with torch.no_grad():
        few, many = (tiny(slots).encode(prompts) for slots in (64, 128))
    torch.testing.assert_close(few.pooled, many.pooled, rtol=0, atol=1e-12)
    for row, prompt in enumerate(prompts):
        real = slice(1, 3 + len(prompt.encode("utf-8")))  # behind the row of padding
        torch.testing.assert_close(few.tokens[row, real], many.tokens[row, real], rtol=0, atol=1e-12)


def test_padding_rows_of_a_prompt_are_alike_and_carry_its_content() -> None:
    encoder = tiny(64)
    encoder.merge = False
    with torch.no_grad():
        tokens = encoder.encode(["a cat", "a dog"]).tokens
    pads = tokens[:, : 64 - 7]
    torch.testing.assert_close(pads, pads[:, :1].expand_as(pads), rtol=0, atol=1e-12)
    assert (pads[0, 0] - pads[1, 0]).abs().max() > 1e-3


def test_gradients_equal_those_of_diffusers(folder: Path, exact_peer: None) -> None:
    from diffusers.pipelines.kolors import ChatGLMModel

    model = ChatGLMModel.from_pretrained(folder, dtype=torch.float64)
    encoder = ChatGLM3(path=folder, max_tokens=24).build(BuildContext(dtype="float64"))
    slots = Slots.of(encoder.tokenizer.ids(["a cat", ""]), pad=0, least=24)
    inputs = (each.view(2, 24) for each in (slots.ids, slots.positions, slots.real.long()))
    hidden = model(*inputs, output_hidden_states=True).hidden_states
    (hidden[-2].square().sum() + hidden[-1][-1].sin().sum()).backward()
    found = encoder.encode(["a cat", ""])
    (spread(found).square().sum() + found.pooled.sin().sum()).backward()
    theirs = dict(model.named_parameters())
    for name, weight in encoder.module.named_parameters():
        assert weight.grad is not None
        assert error(weight.grad, theirs[name].grad) <= 1e-9, name


def test_training_works_after_encoding_in_inference_mode() -> None:
    encoder = tiny(16)
    with torch.inference_mode():
        encoder.encode(["a"])
    encoder.encode(["a"]).pooled.sum().backward()
    assert encoder.module.embedding.word_embeddings.weight.grad is not None


def test_random_weights_are_the_same_each_time_and_leave_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    one, two = tiny(16).module.state_dict(), tiny(16).module.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("width", "layers"), [(64, 2), (256, 8)])
def test_random_hidden_states_are_of_unit_size_at_any_width_and_depth(width: int, layers: int) -> None:
    wide = {**SMALL, "hidden_size": width, "num_layers": layers, "ffn_hidden_size": 3 * width}
    config = ChatGLM3(architecture=Architecture(**wide), max_tokens=32)
    with torch.no_grad():
        found = config.build(BuildContext()).encode(["a cat and a dog"])
    assert 0.7 < found.tokens.std() < 2.0
    assert 0.7 < found.pooled.std() < 2.0


def test_a_model_needs_to_know_its_vocabulary() -> None:
    with pytest.raises(ValueError, match="padded_vocab_size"):
        ChatGLM3Model(Architecture(**{**SMALL, "padded_vocab_size": None}), OPS)


def test_an_empty_batch_is_encoded_as_nothing() -> None:
    found = tiny(16).encode([])
    assert found.tokens.shape == (0, 1, 32)
    assert found.pooled.shape == (0, 32)
