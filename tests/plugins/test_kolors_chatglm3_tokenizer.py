from __future__ import annotations

import csv
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_chatglm3.byte_pieces import byte_pieces
from kolors_chatglm3.slots import Slots
from kolors_chatglm3.tokenizer import Tokenizer, TruncationWarning
from kolors_chatglm3.train_tokenizer import train_tokenizer

from kolors_kernel.errors import DataError, RecipeError, WeightsError

DATA = Path(__file__).resolve().parents[2].parent / "shared/data"
REAL = DATA / "kolors/tokenizer.model"
TEXTS = [
    "",
    " ",
    "a photo of a cat wearing sunglasses",
    "一张瓢虫的照片，微距，变焦，高质量，电影，拿着一个牌子，写着“可图”",
    "一只cat在看 2024 年的 movie！",
    "  two  spaces\tand\ttabs ",
    "😀👩‍👩‍👧 é ﬁ ﷽ Ω",
    "a\x00b\x07\x1b\r\n\x7f",
    "\u200b\ufeff\u202e",
    "[gMASK] sop [MASK] eop <|user|> hi <|assistant|>",
    "<unk> <s> </s> <pad> <0x41> ▁",
]


def bytes_in(slots: int) -> Tokenizer:
    return Tokenizer(byte_pieces(), max_tokens=slots, source="bytes")


@pytest.fixture(scope="module")
def real() -> Tokenizer:
    if not REAL.is_file():
        pytest.skip(f"the released tokenizer is not at {REAL}")
    return Tokenizer(REAL.read_bytes(), max_tokens=256, source=str(REAL))


@pytest.fixture(scope="module")
def peer() -> Any:
    from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer

    if not REAL.is_file():
        pytest.skip(f"the released tokenizer is not at {REAL}")
    return ChatGLMTokenizer(vocab_file=str(REAL))


def known_prompts() -> list[str]:
    folder = DATA / "prompts"
    found = [row.split("\t")[0] for row in (folder / "PartiPrompts.tsv").read_text("utf-8").splitlines()[1:]]
    for name in ("uni_test_prompts_en.csv", "uni_test_prompts_zh.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as file:
            found += [row[1] for row in csv.reader(file)][1:]
    for name in ("geneval.jsonl", "longtext_text_prompts.jsonl", "longtext_text_prompts_zh.jsonl"):
        rows = (json.loads(line) for line in (folder / name).read_text("utf-8").splitlines())
        found += [row["prompt"] for row in rows]
    return found


def laid(tokenizer: Tokenizer, texts: list[str]) -> Slots:
    return Slots.of(tokenizer.ids(texts), pad=tokenizer.pad, least=tokenizer.max_tokens)


def assert_same_slots(ours: Tokenizer, peer: Any, texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        slots = laid(ours, texts)
    theirs = peer(texts, padding="max_length", max_length=ours.max_tokens, truncation=True, return_tensors="pt")
    assert slots.ids.tolist() == theirs["input_ids"].flatten().tolist()
    assert slots.positions.tolist() == theirs["position_ids"].flatten().tolist()
    assert slots.real.int().tolist() == theirs["attention_mask"].flatten().tolist()


def test_released_ids_follow_the_pieces(real: Tokenizer) -> None:
    assert real.special["[MASK]"] == 64789
    assert real.special["[gMASK]"] == 64790
    assert real.special["sop"] == 64792
    assert real.special["<|observation|>"] == 64797
    assert real.size == 64798
    assert real.ids([""]) == [[64790, 64792]]


@pytest.mark.parametrize(
    "text", [*TEXTS, "a very long story " * 80, "很长的故事" * 2000], ids=lambda text: ascii(text[:12])
)
def test_slots_equal_those_of_an_independent_tokenizer(real: Tokenizer, peer: Any, text: str) -> None:
    assert_same_slots(real, peer, [text])


def test_slots_of_published_prompts_equal_those_of_an_independent_tokenizer(real: Tokenizer, peer: Any) -> None:
    if not (DATA / "prompts").is_dir():
        pytest.skip(f"there are no prompts at {DATA}")
    assert_same_slots(real, peer, random.Random(0).sample(known_prompts(), 400))


def test_text_of_special_tokens_is_not_parsed(real: Tokenizer) -> None:
    for row in real.ids(["[gMASK] sop", "<|user|>", "</s> <unk>"]):
        assert all(2 < token < 64789 for token in row[2:])


def test_padding_is_on_the_left_with_positions_that_start_at_the_prefix() -> None:
    slots = laid(bytes_in(6), ["ab", ""])
    prefix = [260, 262]
    assert slots.lengths == (6, 6)
    assert slots.ids.tolist() == [0, 0, *prefix, 100, 101, 0, 0, 0, 0, *prefix]
    assert slots.positions.tolist() == [0, 0, 0, 1, 2, 3, 0, 0, 0, 0, 0, 1]
    assert slots.real.tolist() == [False] * 2 + [True] * 4 + [False] * 4 + [True] * 2


def test_text_that_just_fits_is_not_warned_about() -> None:
    assert bytes_in(6).ids(["abcd"]) == [[260, 262, 100, 101, 102, 103]]


def test_cutting_keeps_the_head_and_names_what_is_lost_and_the_setting_that_keeps_it() -> None:
    with pytest.warns(
        TruncationWarning, match="prompt 1 .'abcdefg'….* 9 tokens, so its last 3 are cut.* max_tokens to 9"
    ):
        rows = bytes_in(6).ids(["a", "abcdefg"])
    assert rows[1] == [260, 262, 100, 101, 102, 103]
    assert len(bytes_in(9).ids(["abcdefg"])[0]) == 9


def test_one_warning_speaks_for_a_whole_batch() -> None:
    with pytest.warns(TruncationWarning, match="so do 2 more of this batch: set max_tokens to 102 ") as said:
        bytes_in(6).ids(["x" * 10, "x" * 100, "y", "x" * 50])
    assert len(said) == 1


def test_longer_text_can_be_kept_whole_in_slots_of_its_own_number() -> None:
    whole = Tokenizer(byte_pieces(), max_tokens=6, source="bytes", longer="extend")
    slots = laid(whole, ["abcdefg", "ab"])
    assert slots.lengths == (9, 6)
    assert slots.real.tolist() == [True] * 9 + [False] * 2 + [True] * 4
    with pytest.raises(RecipeError, match=r"prompt 0 .* has 40002 tokens, and may have 32768"):
        whole.ids(["x" * 40000])


def test_longer_text_can_be_refused_by_its_number_and_length() -> None:
    strict = Tokenizer(byte_pieces(), max_tokens=6, source="bytes", longer="refuse")
    assert strict.ids(["abcd"]) == [[260, 262, 100, 101, 102, 103]]
    with pytest.raises(RecipeError, match=r"prompt 1 .'abcdefg'….* has 9 tokens, and may have 6.*set longer_prompts"):
        strict.ids(["a", "abcdefg"])


@pytest.mark.parametrize(
    ("prompts", "complaint"),
    [
        ("a cat", "list of texts, not the one text 'a cat'"),
        (["a", None], "prompt 1 should be text, not NoneType"),
        ([b"a"], "prompt 0 should be text, not bytes"),
        (["a\ud800"], "half a character, '\\\\ud800' at 1"),
    ],
)
def test_what_is_no_text_is_refused(prompts: Any, complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        bytes_in(8).ids(prompts)


def test_slots_that_hold_the_prefix_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens 2 leaves no room"):
        bytes_in(2)


@pytest.mark.parametrize("model", [b"", b"not a model", byte_pieces()[:1000]], ids=["empty", "text", "truncated"])
def test_a_damaged_model_is_named(model: bytes) -> None:
    with pytest.raises(WeightsError, match=r"here/tokenizer\.model is not a .*sentencepiece model"):
        Tokenizer(model, max_tokens=8, source="here/tokenizer.model")


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_byte_pieces_spell_any_text_in_utf8(text: str) -> None:
    row = bytes_in(1000).ids([text])[0]
    assert bytes(token - 3 for token in row[2:]) == text.encode("utf-8")


def corpus() -> list[str]:
    words = ["猫", "狗", "太阳", "微笑", "cat", "dog", "sun", "smiling", "face", "red", "2", "1"]
    draw = random.Random(0)
    return [" ".join(draw.choices(words, k=6)) for _ in range(200)]


def test_training_a_tokenizer_gives_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_tokenizer(corpus(), tmp_path / name, pieces=330)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_trained_tokenizer_has_the_ids_of_the_released_one_and_spells_the_unknown_in_bytes(tmp_path: Path) -> None:
    train_tokenizer(corpus(), tmp_path / "tokenizer.model", pieces=330)
    made = Tokenizer((tmp_path / "tokenizer.model").read_bytes(), max_tokens=64, source="made")
    assert (made.pieces.unk_id(), made.pieces.bos_id(), made.pieces.eos_id()) == (0, 1, 2)
    assert made.size == 330 + 9
    assert len(made.ids(["smiling cat"])[0]) == 2 + 2
    unknown = made.ids(["龙"])[0][2:]
    assert made.pieces.decode(unknown) == "龙"
    assert 0 not in unknown


def test_a_tokenizer_that_cannot_be_trained_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(ValueError, match="pieces is 259"):
        train_tokenizer(corpus(), path, pieces=259)
    with pytest.raises(DataError, match="do not make 9000 pieces"):
        train_tokenizer(corpus(), path, pieces=9000)
    with pytest.raises(DataError, match="lines of 1 to"):
        train_tokenizer(["", "\n"], path, pieces=300)
    assert not list(tmp_path.iterdir())
