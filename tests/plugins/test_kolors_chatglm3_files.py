from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kolors_chatglm3.byte_pieces import byte_pieces
from kolors_chatglm3.config import ChatGLM3
from kolors_chatglm3.encoder import ChatGLM3Encoder
from kolors_chatglm3.train_tokenizer import train_tokenizer
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from kolors_kernel import BuildContext
from kolors_kernel.errors import RunError, WeightsError
from kolors_kernel.values import Conditioning, ConditioningSpec

PROMPTS = ["a cat", "", "一只猫"]
RELEASED_CONFIG = Path(__file__).resolve().parents[2].parent / "shared/data/kolors/text_encoder_config.json"


def made(dtype: str = "float32") -> ChatGLM3Encoder:
    encoder = ChatGLM3.tiny().build(BuildContext(dtype=dtype))
    with torch.no_grad():
        for weight in encoder.module.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)), alpha=0.1)
    return encoder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    made().save(tmp_path / "text_encoder")
    return tmp_path / "text_encoder"


def load(folder: Path, dtype: str = "float32") -> ChatGLM3Encoder:
    return ChatGLM3(path=folder, max_tokens=32).build(BuildContext(dtype=dtype))


def encoded(encoder: ChatGLM3Encoder) -> Conditioning:
    with torch.no_grad():
        return encoder.encode(PROMPTS)


def assert_same(one: ChatGLM3Encoder, two: ChatGLM3Encoder) -> None:
    first, second = encoded(one), encoded(two)
    assert torch.equal(first.tokens, second.tokens)
    assert torch.equal(first.pooled, second.pooled)


def test_what_is_saved_is_loaded_again_bit_for_bit(saved: Path) -> None:
    assert_same(load(saved), made())
    assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors", "tokenizer.model"]


def test_saving_over_what_was_loaded_keeps_it_whole(saved: Path) -> None:
    encoder = load(saved)
    encoder.save(saved)
    assert_same(load(saved), encoder)


def test_weights_are_kept_in_the_dtype_of_the_build(saved: Path) -> None:
    encoder = load(saved, "bfloat16")
    assert {weight.dtype for weight in encoder.module.parameters()} == {torch.bfloat16}
    encoder.save(saved)
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same(load(saved, "bfloat16"), encoder)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # diffusers
def test_diffusers_loads_what_is_saved(saved: Path) -> None:
    from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer

    tokenizer, model = ChatGLMTokenizer.from_pretrained(saved), ChatGLMModel.from_pretrained(saved)
    inputs = tokenizer(PROMPTS, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    ours = encoded(ChatGLM3(path=saved, max_tokens=32, merge_padding=False).build(BuildContext()))
    torch.testing.assert_close(hidden[-2].transpose(0, 1), ours.tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden[-1][-1], ours.pooled, rtol=1e-5, atol=1e-5)


def rewrite_as(folder: Path, write: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write(state)


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_the_released_layouts_load(saved: Path, prefix: str, ending: str) -> None:
    """Two shards under an index, with the parts that are not used, and the tokenizer in the folder beside."""
    stem, write = ("pytorch_model", torch.save) if ending == "bin" else ("model", save_file)

    def shards(state: dict[str, torch.Tensor]) -> None:
        width = state["encoder.layers.0.input_layernorm.weight"].shape[0]
        unused = {
            "encoder.final_layernorm.weight": torch.ones(width),
            "output_layer.weight": torch.zeros(268, width),
            "rotary_pos_emb.inv_freq": torch.ones(4, dtype=torch.float16),
        }
        whole = {prefix + key: tensor for key, tensor in {**state, **unused}.items()}
        names = {key: f"{stem}-0000{1 + index % 2}-of-00002.{ending}" for index, key in enumerate(whole)}
        for name in set(names.values()):
            write({key: tensor for key, tensor in whole.items() if names[key] == name}, saved / name)
        (saved / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    rewrite_as(saved, shards)
    (saved.parent / "tokenizer").mkdir()
    shutil.move(saved / "tokenizer.model", saved.parent / "tokenizer/tokenizer.model")
    assert_same(load(saved), made())
    assert "output_layer.weight" not in load(saved).module.state_dict()


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch exploded",)


def test_a_pickle_with_code_is_refused_and_not_run(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    rewrite_as(saved, lambda state: torch.save({**state, "bomb": Bomb()}, saved / "pytorch_model.bin"))
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin .*refused"):
        load(saved)
    assert not (saved / "exploded").exists()


def test_a_truncated_file_is_named(saved: Path) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors is not a complete"):
        load(saved)


def test_missing_extra_and_misshapen_keys_are_all_named(saved: Path) -> None:
    def damage(state: dict[str, torch.Tensor]) -> None:
        state["encoder.layers.9.extra"] = state.pop("encoder.layers.1.input_layernorm.weight")
        state["embedding.word_embeddings.weight"] = torch.zeros(268, 33)
        save_file(state, saved / "model.safetensors")

    rewrite_as(saved, damage)
    with pytest.raises(WeightsError) as said:
        load(saved)
    for part in (
        "missing: encoder.layers.1.input_layernorm.weight",
        "extra: encoder.layers.9.extra",
        "embedding.word_embeddings.weight is [268, 33], should be [268, 32]",
    ):
        assert part in str(said.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"add_qkv_bias": False}, "add_qkv_bias is False, but only True is computed here"),
        ({"multi_query_attention": None}, "multi_query_attention is None, but only True"),
        ({"quantization_bit": 4}, "quantization_bit is 4, but only 0"),
        ({"pre_seq_len": 8}, "pre_seq_len is 8"),
        ({"num_layers": "two"}, "does not describe a ChatGLM: num_layers: "),
        ({"multi_query_group_num": 3}, "not a multiple of multi_query_group_num 3"),
        ({"kv_channels": 18}, "kv_channels 18 is not a multiple of 4"),
        ({"padded_vocab_size": 100}, "100"),
    ],
)
def test_a_config_that_cannot_be_used_says_why(saved: Path, change: dict[str, object], complaint: str) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(WeightsError, match=complaint):
        load(saved)


@pytest.mark.parametrize("content", [None, "{", "[]"], ids=["absent", "cut", "list"])
def test_a_damaged_config_is_an_error_already_when_the_shape_is_asked_for(saved: Path, content: str | None) -> None:
    (saved / "config.json").unlink()
    if content is not None:
        (saved / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        ChatGLM3(path=saved).spec()


def test_the_shape_is_known_from_the_config_alone(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    assert ChatGLM3(path=saved).spec() == ConditioningSpec(tokens=256, width=32, pooled=32)
    assert ChatGLM3(max_tokens=512).spec() == ConditioningSpec(tokens=512, width=4096, pooled=4096)
    with pytest.raises(WeightsError, match="has no weights"):
        load(saved)


def test_the_released_config_gives_the_released_widths(tmp_path: Path) -> None:
    if not RELEASED_CONFIG.is_file():
        pytest.skip(f"the released config is not at {RELEASED_CONFIG}")
    from kolors_chatglm3.architecture import RELEASED, Architecture

    shutil.copy(RELEASED_CONFIG, tmp_path / "config.json")
    assert Architecture.read(tmp_path) == RELEASED
    released = json.loads(RELEASED_CONFIG.read_text())
    ours = RELEASED.released_form()
    ours["post_layer_norm"] = True  # ours leaves out the final norm and says so
    assert {key: ours[key] for key in released if key in ours} == {
        key: released[key] for key in released if key in ours
    }


def test_widths_are_said_in_one_place_only(saved: Path) -> None:
    with pytest.raises(ValidationError, match="leave one of the two out"):
        ChatGLM3(path=saved, architecture=ChatGLM3.tiny().architecture)


def test_a_missing_tokenizer_names_both_places_and_the_setting(saved: Path) -> None:
    (saved / "tokenizer.model").unlink()
    with pytest.raises(
        WeightsError, match=r"text_encoder/tokenizer\.model nor at .*tokenizer/tokenizer\.model.*setting"
    ):
        load(saved)


def test_the_setting_tokenizer_comes_before_the_folder(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other.model").write_bytes(byte_pieces())
    (saved / "tokenizer.model").write_bytes(b"damaged")
    assert_same(ChatGLM3(path=saved, tokenizer=tmp_path / "other.model", max_tokens=32).build(BuildContext()), made())


def test_a_tokenizer_that_is_too_large_for_the_weights_is_refused(saved: Path, tmp_path: Path) -> None:
    words = [f"word{number} 猫" for number in range(99)]
    train_tokenizer(words, tmp_path / "own.model", pieces=275)
    with pytest.raises(WeightsError, match="the tokenizer has 284 ids, but the model embeds 268"):
        ChatGLM3(path=saved, tokenizer=tmp_path / "own.model").build(BuildContext())


def test_a_new_model_has_as_many_embeddings_as_its_tokenizer_has_ids(tmp_path: Path) -> None:
    train_tokenizer([f"word{number} 猫" for number in range(99)], tmp_path / "own.model", pieces=275)
    config = ChatGLM3.tiny().model_copy(update={"tokenizer": tmp_path / "own.model"})
    encoder = config.build(BuildContext())
    assert encoder.module.embedding.word_embeddings.num_embeddings == 275 + 9
    encoder.save(tmp_path / "saved")
    assert_same(load(tmp_path / "saved"), encoder)


def test_a_save_that_fails_leaves_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    encoder = load(saved)
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="No space left"):
        encoder.save(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
