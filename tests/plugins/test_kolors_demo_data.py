from __future__ import annotations

import importlib.util
import sys
from collections import Counter, defaultdict
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from kolors_demo.captions import STYLES, caption
from kolors_demo.config import STORE
from kolors_zarr.store.places import Folder
from kolors_zarr.store.reading import Store
from PIL import Image
from sentencepiece import SentencePieceProcessor

from kolors_kernel.values import SampleRecord

DATA = STORE.parent
SCRIPT = Path(__file__).parents[2] / "scripts" / "build_demo_data.py"
CAPTIONS = {"zh_original", "en_original", "zh_synthetic", "en_synthetic"}


@pytest.fixture(scope="module")
def store() -> Store:
    return Store(Folder(STORE))


@pytest.fixture(scope="module")
def records(store: Store) -> list[SampleRecord]:
    return list(store.records(range(store.samples)))


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_demo_data", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_concept_is_there_in_every_style(records: list[SampleRecord]) -> None:
    styles = defaultdict(set)
    for record in records:
        styles[record.tags["concept"]].add(record.tags["style"])
    assert len(records) == 5556
    assert len(styles) == 1852
    assert all(each == set(STYLES) for each in styles.values())
    assert len({record.id for record in records}) == 5556


def test_every_picture_has_all_captions_in_its_language(records: list[SampleRecord]) -> None:
    for record in records:
        assert set(record.captions) == CAPTIONS
        for key, text in record.captions.items():
            assert text.strip() == text != ""
            chinese = any("\u4e00" <= character <= "\u9fff" for character in text)
            assert chinese == key.startswith("zh"), (record.id, text)


def test_original_captions_begin_with_the_prompt_and_half_of_them_say_more(records: list[SampleRecord]) -> None:
    longer = 0
    for record in records:
        for language in ("en", "zh"):
            prompt = caption(record.tags[f"name_{language}"], record.tags["style"], language)  # type: ignore[arg-type]
            original = record.captions[f"{language}_original"]
            assert original == prompt or original.startswith(prompt + {"en": ", ", "zh": "，"}[language])
            longer += original != prompt
    assert 0.35 < longer / (2 * len(records)) < 0.5  # some have no keyword that is not in the name


def test_synthetic_captions_say_the_style_and_not_the_name(records: list[SampleRecord]) -> None:
    telling = 0
    for record in records:
        assert STYLES[record.tags["style"]].words["en"] in record.captions["en_synthetic"]
        assert STYLES[record.tags["style"]].words["zh"] in record.captions["zh_synthetic"]
        telling += record.tags["name_en"] in record.captions["en_synthetic"].replace(",", "").replace(".", "").split()
    assert telling < 0.01 * len(records)  # a heart is a heart


def test_names_tell_concepts_apart_in_both_languages(records: list[SampleRecord]) -> None:
    for tag in ("name_en", "name_zh"):
        assert len({record.tags[tag] for record in records}) == 1852


def test_a_held_out_concept_is_trained_in_its_other_styles(records: list[SampleRecord]) -> None:
    held_out = Counter(record.tags["concept"] for record in records if record.tags["split"] == "held_out")
    trained = Counter(record.tags["concept"] for record in records if record.tags["split"] == "train")
    assert set(held_out.values()) == {1}
    assert all(trained[concept] == 2 for concept in held_out)
    assert 0.025 < held_out.total() / len(records) < 0.035
    assert held_out.total() + trained.total() == len(records)


def test_every_style_and_every_group_has_held_out_pictures(records: list[SampleRecord]) -> None:
    held_out = [record.tags for record in records if record.tags["split"] == "held_out"]
    assert {tags["style"] for tags in held_out} == set(STYLES)
    assert {tags["group"] for tags in held_out} == {record.tags["group"] for record in records}


def test_pictures_are_opaque_squares_on_white(store: Store) -> None:
    blank, corners, rows = 0, list[int](), range(0, store.samples, 7)
    for data in store.read_bytes("image", rows):
        with Image.open(BytesIO(data)) as picture:
            assert (picture.format, picture.mode, picture.size) == ("WEBP", "RGB", (64, 64))
            pixels = np.asarray(picture)
        blank += pixels.std() < 2
        corners += [int(pixels[y, x].min()) for y in (0, -1) for x in (0, -1)]
    assert blank == 0
    assert np.mean(np.asarray(corners) > 240) > 0.75  # square signs and flags reach into theirs


def test_the_whole_of_the_data_stays_small() -> None:
    files = [path for path in DATA.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 11_000_000
    assert len(files) < 100


def test_every_picture_names_a_licence_that_is_listed_beside_it(records: list[SampleRecord]) -> None:
    listed = (DATA / "LICENSES.md").read_text(encoding="utf-8")
    for record in records:
        borrowed = record.tags["style"] == "fluent_3d" and record.tags["subgroup"] == "country-flag"
        assert record.tags["licence"] == ("Apache-2.0" if borrowed else STYLES[record.tags["style"]].licence)
    for style, each in STYLES.items():
        assert f"`{style}`" in listed and each.licence in listed
    for text in (DATA / "licences").iterdir():
        assert f"licences/{text.name}" in listed
    for holder in (
        "Twitter",
        "Jason Sofonia",
        "Google",
        "Microsoft Corporation",
        "LobeHub",
        "Unicode, Inc.",
        "Johnson",
    ):
        assert holder in listed


def test_the_tokenizer_knows_the_words_of_the_captions(records: list[SampleRecord]) -> None:
    tokenizer = SentencePieceProcessor(model_file=str(DATA / "tokenizer.model"))
    assert tokenizer.get_piece_size() == 4000
    spelt = 0
    for record in records[::5]:
        for text in record.captions.values():
            pieces = tokenizer.encode(text, out_type=str)
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert len(pieces) < 64
            spelt += any(piece.startswith("<0x") for piece in pieces)
    assert spelt < 0.03 * 4 * len(records[::5])  # rare characters are spelt in bytes


def test_what_is_transparent_becomes_white_and_oblong_pictures_stay_in_proportion(script: ModuleType) -> None:
    drawing = Image.new("RGBA", (128, 256), (0, 0, 0, 0))
    drawing.paste((255, 0, 0, 255), (32, 64, 96, 192))
    file = BytesIO()
    drawing.save(file, "PNG")
    pixels = np.asarray(script.on_white(file.getvalue()))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[:, :20] == 255).all() and (pixels[:12] == 255).all()
    red = pixels[..., 1] < 128
    assert abs(int(red.sum()) - 16 * 32) < 50  # a quarter of the square's width and half of its height


def test_a_record_is_made_the_same_every_time(script: ModuleType, store: Store, records: list[SampleRecord]) -> None:
    rows = range(0, store.samples, 501)
    for record in (records[row] for row in rows):
        tags = record.tags
        names = {"en": tags["name_en"], "zh": tags["name_zh"]}
        concept = script.Concept(tags["concept"], tags["group"], tags["subgroup"], names, {"en": [], "zh": []})
        assert (script.held_out_style(concept) == tags["style"]) == (tags["split"] == "held_out")
        assert script.licence_of(concept, tags["style"]) == tags["licence"]
        assert record.captions["en_original"].startswith(script.original_caption(concept, tags["style"], "en"))


def test_keywords_are_few_and_not_said_twice(script: ModuleType) -> None:
    keywords = {"en": ["apple", "fruit", "red", "food", "autumn", "health"], "zh": ["苹果", "水果", "红", "食物"]}
    concept = script.Concept("1F34E", "food-drink", "food-fruit", {"en": "red apple", "zh": "红苹果"}, keywords)
    for language, comma in (("en", ", "), ("zh", "，")):
        said = [script.original_caption(concept, style, language).split(comma) for style in STYLES]
        for name, style, *more in said:
            assert (name, style) in {(concept.names[language], each.words[language]) for each in STYLES.values()}
            assert len(more) <= 3 and not {"apple", "red", "苹果", "红"} & set(more)


def test_a_changed_archive_is_refused(script: ModuleType, tmp_path: Path) -> None:
    for name, package in script.PACKAGES.items():
        (tmp_path / package.file(name)).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"emojibase-data-17\.0\.0\.tgz has the SHA-512"):
        script.fetch(tmp_path)
