from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from kolors_chatglm3.config import ChatGLM3
from kolors_chatglm3.encoder import ChatGLM3Encoder, UnmergedPadding
from kolors_chatglm3.slots import Slots, merge_padding, reason_not_to_merge

from kolors_kernel import BuildContext
from kolors_kernel.errors import RecipeError
from kolors_kernel.values import Conditioning


def tiny(dtype: str = "float64", **settings: object) -> ChatGLM3Encoder:
    return ChatGLM3.tiny().model_copy(update=settings).build(BuildContext(dtype=dtype))


def encode(encoder: ChatGLM3Encoder, *prompts: str) -> Conditioning:
    with torch.no_grad():
        return encoder.encode(prompts)


def slots(*texts: tuple[int, ...]) -> Slots:
    return Slots.of(texts, pad=0, least=6)


def passes(encoder: ChatGLM3Encoder) -> list[tuple[int, ...]]:
    """Note how many slots the texts of each pass through the model have."""
    seen: list[tuple[int, ...]] = []
    encoder.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].lengths))
    return seen


def test_a_prompt_and_the_negative_one_go_through_in_one_pass_without_padding() -> None:
    encoder = tiny()
    seen = passes(encoder)
    found = encode(encoder, "", "a cat")
    assert seen == [(3, 8)]
    assert found.tokens.shape == (2, 8, 32)
    assert found.key_bias is not None
    assert found.key_bias.dtype == torch.float32
    zero, none = 0.0, -math.inf
    assert found.key_bias[0].tolist() == pytest.approx([math.log(30), zero, zero, *[none] * 5])
    assert found.key_bias[1].tolist() == pytest.approx([math.log(25), *[zero] * 7])


def test_equal_prompts_are_encoded_once_and_given_to_each() -> None:
    encoder = tiny()
    seen = passes(encoder)
    found = encode(encoder, "", "a cat", "", "a dog", "")
    assert seen == [(3, 8, 8)]
    alone = [encode(encoder, prompt) for prompt in ("", "a cat", "", "a dog", "")]
    for row, wanted in enumerate(alone):
        rows = wanted.tokens.shape[1]
        assert found.key_bias is not None and wanted.key_bias is not None
        torch.testing.assert_close(found.tokens[row, :rows], wanted.tokens[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.pooled[row], wanted.pooled[0], rtol=0, atol=1e-12)
        assert torch.equal(found.key_bias[row, :rows], wanted.key_bias[0])
        assert (found.key_bias[row, rows:] == -math.inf).all()


def test_many_prompts_take_several_passes_and_several_attentions() -> None:
    encoder = tiny()
    seen = passes(encoder)
    prompts = [f"{number} cats in a tree" for number in range(60)]
    found = encode(encoder, *prompts)
    assert len(seen) > 1
    assert max(map(sum, seen)) <= 1024
    assert sum(map(len, seen)) == 60
    for number in (0, 7, 59):
        wanted = encode(encoder, prompts[number])
        torch.testing.assert_close(found.tokens[number, : wanted.tokens.shape[1]], wanted.tokens[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(found.pooled[number], wanted.pooled[0], rtol=0, atol=1e-12)


def test_a_longer_prompt_is_read_to_its_end_beside_one_with_padding() -> None:
    long, short = "a cat on a red roof in the rain, at night", "a dog"
    found = encode(tiny(longer_prompts="extend"), long, short)
    assert found.tokens.shape[1] == len(long) + 2
    torch.testing.assert_close(found.pooled[0], encode(tiny(max_tokens=64), long).pooled[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found.tokens[1, :8], encode(tiny(), short).tokens[0], rtol=0, atol=1e-12)
    with pytest.raises(RecipeError, match=r"prompt 1 .* has 43 tokens, and may have 32"):
        tiny(longer_prompts="refuse").encode([short, long])


def test_a_longer_prompt_stands_beside_all_slots_of_others_where_padding_is_not_merged() -> None:
    found = encode(tiny(longer_prompts="extend", merge_padding=False), "x" * 40, "a dog")
    assert found.key_bias is not None
    assert found.key_bias.isneginf().sum(1).tolist() == [0, 10]
    assert not found.key_bias[:, :32].any()


def test_the_spec_says_how_many_rows_there_may_be() -> None:
    assert ChatGLM3().spec().tokens == 256
    assert ChatGLM3(longer_prompts="extend").spec().tokens == 32768


def test_merging_keeps_the_text_and_counts_the_padding() -> None:
    merged = merge_padding(slots((7, 8), (1, 2, 3, 4, 5, 6), (9,)))
    assert merged.lengths == (3, 6, 2)
    assert merged.ids.tolist() == [0, 7, 8, 1, 2, 3, 4, 5, 6, 0, 9]
    assert merged.positions.tolist() == [0, 0, 1, 0, 1, 2, 3, 4, 5, 0, 0]
    assert merged.count.tolist() == [4, 1, 1, 1, 1, 1, 1, 1, 1, 5, 1]


PLAIN = slots((7, 8), (1, 2, 3))


def changed(values: torch.Tensor, at: int, to: float) -> torch.Tensor:
    values = values.clone()
    values[at] = to
    return values


@pytest.mark.parametrize(
    ("unlike", "reason"),
    [
        (replace(PLAIN, ids=changed(PLAIN.ids, 1, 3)), "padding has several ids, as 0 and 3"),
        (replace(PLAIN, positions=changed(PLAIN.positions, 7, 2)), "padding has positions other than 0, as 2"),
        (replace(PLAIN, real=changed(PLAIN.real, 5, False), ids=changed(PLAIN.ids, 5, 0)), "not on the left.* slot 5"),
        (replace(PLAIN, real=changed(PLAIN.real, 0, True)), "not on the left of its text: there is some at slot 1"),
    ],
    ids=["ids", "positions", "right", "before"],
)
def test_padding_that_is_not_the_same_all_over_is_encoded_in_full_and_said(unlike: Slots, reason: str) -> None:
    unlike = replace(unlike, positions=changed(unlike.positions, 5, 0) if not unlike.real[5] else unlike.positions)
    merging, whole = tiny(), tiny(merge_padding=False)
    with torch.no_grad(), pytest.warns(UnmergedPadding, match=reason):
        found = merging.encode_slots(unlike)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = whole.encode_slots(unlike)
    assert torch.equal(found.tokens, wanted.tokens)
    assert found.tokens.shape == (2, 6, 32)
    assert "every slot is encoded" in merging.report()["padding"]


def test_slots_without_padding_have_no_reason_not_to_be_merged() -> None:
    full = slots((1, 2, 3, 4, 5, 6))
    assert reason_not_to_merge(full) is None
    assert merge_padding(full).lengths == (6,)
    assert encode(tiny(max_tokens=6), "abcd").key_bias is None


def test_freezing_packs_the_weights_says_so_and_ends_training() -> None:
    encoder, plain = tiny("float32"), tiny("float32")
    wanted = encode(plain, "a cat")
    assert "not frozen" in encoder.report()["linear layers"]
    for _ in range(2):
        encoder.freeze()
        assert encoder.report()["linear layers"].startswith("packed 8 linear")
    found = encoder.encode(["a cat"])  # outside of no_grad: there is nothing left that takes gradients
    assert not found.tokens.requires_grad
    torch.testing.assert_close(found.tokens, wanted.tokens, rtol=0, atol=1e-5)
    with pytest.raises(RecipeError, match="cannot be trained: it was frozen"):
        encoder.module.requires_grad_(True)
    encoder.module.requires_grad_(False)


@pytest.mark.parametrize("merge", [True, False])
def test_the_report_says_what_became_of_padding_and_of_float32(merge: bool) -> None:
    encoder = tiny("float32", merge_padding=merge)
    encode(encoder, "a cat")
    said = encoder.report()
    assert ("one row" if merge else "merge_padding is off") in said["padding"]
    assert "float32 products" in said
