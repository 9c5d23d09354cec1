"""Build the demo's picture store: emoji in three styles with Chinese and English captions, from npm packages.

    python scripts/build_demo_data.py --out plugins/kolors_demo/data/emoji.zarr [--npm-cache DIR]

Needs `npm`, which only fetches archives here: nothing is installed and no script of a package is run. The same
versions of the packages, of Pillow and of libwebp give the same pictures and captions, byte by byte.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kolors_captioners.config import Palette
from kolors_chatglm3.train_tokenizer import train_tokenizer
from kolors_demo.captions import COMMA, STYLES, caption
from kolors_zarr.store.writing import write_store
from PIL import Image

from kolors_kernel import BuildContext
from kolors_kernel.values import Language, Sample, SampleRecord

SIDE = 64  # pixels
QUALITY = 90  # of WebP: 6 MB for all pictures, where lossless is 14 MB
HELD_OUT_SHARE = 0.09  # of the concepts, in one style each: 3 % of the pairs
SHARD = 2048  # samples: a few large files
KEYWORDS = 3  # at most, in an original caption that has any
LANGUAGES: tuple[Language, ...] = ("en", "zh")
PIECES = 4000  # of the tokenizer
SHEET = """cat face|tiger|hedgehog|owl|dolphin|butterfly|sunflower|red apple|pizza|teapot|rocket|sailboat|umbrella|
guitar|airplane""".replace("\n", "").split("|")
SUBJECTS = Path(__file__).with_name("demo_subjects.yaml")


@dataclass(frozen=True)
class Package:
    """An npm package: pinned version and content, and where its pictures are."""

    version: str
    sha512: str
    """As in the registry's `dist.integrity`: base64."""
    pictures: str = ""

    def file(self, name: str) -> str:
        """Return the name that `npm pack` gives to the archive of the package called `name`."""
        return f"{name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


WORDS = "emojibase-data"
PACKAGES = {
    WORDS: Package(
        "17.0.0", "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="
    ),
    "emoji-datasource-twitter": Package(
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "package/img/twitter/64/",
    ),
    "emoji-datasource-google": Package(
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "package/img/google/64/",
    ),
    "@lobehub/fluent-emoji-3d": Package(
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "package/assets/",
    ),
}
PICTURES = dict(zip(STYLES, [name for name in PACKAGES if name != WORDS], strict=True))


@dataclass(frozen=True)
class Concept:
    """One emoji without its drawing: code points, place in the groups, names and keywords by language."""

    hexcode: str
    group: str
    subgroup: str
    names: Mapping[Language, str]
    keywords: Mapping[Language, list[str]]

    @property
    def key(self) -> str:
        """The code points as picture files spell them, whether or not they say "as a picture" (U+FE0F)."""
        return picture_key(self.hexcode)


def picture_key(code_points: str) -> str:
    """Return code points joined by dashes in lower case, without the variation selector that sets differ in."""
    return "-".join(part for part in code_points.lower().split("-") if part != "fe0f")


def fetch(cache: Path) -> dict[str, Path]:
    """Return the archive of every package, fetched into `cache` if it is not there. Raises ValueError if changed."""
    archives = {}
    for name, package in PACKAGES.items():
        path = cache / package.file(name)
        if not path.is_file():
            command = ["npm", "pack", "--ignore-scripts", "--silent", f"{name}@{package.version}"]
            subprocess.run([*command, "--pack-destination", str(cache)], check=True, stdout=subprocess.DEVNULL)
        found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
        if found != package.sha512:
            raise ValueError(f"{path} has the SHA-512 {found}, not {package.sha512}; remove it and run again")
        archives[name] = path
    return archives


def read_concepts(archive: Path) -> list[Concept]:
    """Return every emoji of a group, in Unicode's order, without the skin tones."""
    with tarfile.open(archive) as tar:

        def read(name: str) -> Any:
            file = tar.extractfile(f"package/{name}.json")
            assert file is not None
            return json.load(file)

        groups = read("meta/groups")
        entries = {language: {each["hexcode"]: each for each in read(f"{language}/data")} for language in LANGUAGES}
    return [
        Concept(
            code,
            groups["groups"][str(entry["group"])],
            groups["subgroups"][str(entry["subgroup"])],
            {language: entries[language][code]["label"] for language in LANGUAGES},
            {language: entries[language][code].get("tags", []) for language in LANGUAGES},
        )
        for code, entry in sorted(entries["en"].items(), key=lambda item: item[1].get("order", 0))
        if "group" in entry
    ]


def read_pictures(archive: Path, folder: str) -> dict[str, bytes]:
    """Return the picture files of an archive by key; of two spellings of one emoji the first by name."""
    found: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        members = {m.name: m for m in tar if m.isfile() and m.name.startswith(folder)}
        for name in sorted(members):
            file = tar.extractfile(members[name])
            assert file is not None
            found.setdefault(picture_key(Path(name).stem), file.read())
    return found


def on_white(data: bytes) -> Image.Image:
    """Return a picture file in RGB on a white square of SIDE pixels.

    On white rather than with alpha: it is smaller, and whoever decodes it cannot get black around it.
    """
    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def encode(picture: Image.Image) -> bytes:
    """Return the picture as WebP."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY, method=6)
    return file.getvalue()


def draw(*parts: str) -> int:
    """Return 64 bits that depend on the parts alone: the only source of chance here."""
    return int.from_bytes(hashlib.sha256("/".join(parts).encode()).digest()[:8], "big")


def held_out_style(concept: Concept) -> str | None:
    """Return the one style in which a concept is kept from training, or None for most concepts."""
    if draw("held out", concept.hexcode) >= HELD_OUT_SHARE * 2**64:
        return None
    return list(STYLES)[draw("style", concept.hexcode) % len(STYLES)]


def original_caption(concept: Concept, style: str, language: Language) -> str:
    """Return name and style; half of them go on with a few keywords, as captions from the web say more or less."""
    name = concept.names[language]
    text = caption(name, style, language)
    if draw("keywords", concept.hexcode, style, language) % 2:
        return text
    new = [word for word in concept.keywords[language] if word.lower() not in name.lower()]
    new.sort(key=lambda word: draw(word, concept.hexcode, style, language))
    return COMMA[language].join((text, *new[:KEYWORDS]))


def synthetic_caption(subject: str, style: str, language: Language, colours: str) -> str:
    """Return what can be told without the name: the kind of thing, the style and the measured colours (2.1.2)."""
    words = STYLES[style].words[language]
    if language == "en":
        return f"A picture of {subject} in {words}. {colours}"
    return f"一幅{words}的{subject}图片。{colours}"


def licence_of(concept: Concept, style: str) -> str:
    """Return the licence of one drawing: Fluent has no flags of countries, so its npm package borrows Noto's."""
    borrowed = style == "fluent_3d" and concept.subgroup == "country-flag"
    return STYLES["noto" if borrowed else style].licence


def samples(concepts: list[Concept], files: Mapping[str, Mapping[str, bytes]]) -> Iterator[Sample]:
    """Yield each concept in each style."""
    subjects = yaml.safe_load(SUBJECTS.read_text(encoding="utf-8"))
    captioner = Palette().build(BuildContext())
    for concept in concepts:
        held_out = held_out_style(concept)
        pictures = [on_white(files[style][concept.key]) for style in STYLES]
        captions: list[dict[str, str]] = [{} for _ in STYLES]
        for language, subject in zip(LANGUAGES, subjects[concept.subgroup], strict=True):
            colours = captioner.caption(pictures, language)
            for style, each, seen in zip(STYLES, captions, colours, strict=True):
                each[f"{language}_original"] = original_caption(concept, style, language)
                each[f"{language}_synthetic"] = synthetic_caption(subject, style, language, seen)
        for style, picture, each in zip(STYLES, pictures, captions, strict=True):
            tags = {
                "concept": concept.hexcode,
                "name_en": concept.names["en"],
                "name_zh": concept.names["zh"],
                "style": style,
                "group": concept.group,
                "subgroup": concept.subgroup,
                "split": "held_out" if style == held_out else "train",
                "licence": licence_of(concept, style),
            }
            yield Sample(SampleRecord(f"{concept.hexcode}/{style}", (SIDE, SIDE), each, tags), encode(picture))


def clauses(texts: Iterable[str]) -> list[str]:
    """Return each clause of the texts once, so that a tokenizer spends its pieces on words, not on whole sentences."""
    return sorted({clause.strip() for text in texts for clause in re.split("(?<=[,.，。])", text)} - {""})


def write_sheet(path: Path, concepts: list[Concept], files: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write a picture of a few concepts, a column each, in every style, a row each."""
    chosen = [concept for concept in concepts if concept.names["en"] in SHEET]
    sheet = Image.new("RGB", (SIDE * len(chosen), SIDE * len(STYLES)), "white")
    for row, style in enumerate(STYLES):
        for column, concept in enumerate(chosen):
            sheet.paste(on_white(files[style][concept.key]), (SIDE * column, SIDE * row))
    sheet.save(path, optimize=True)


def main() -> None:
    """Fetch, join and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the store's folder, which must not exist yet")
    parser.add_argument("--npm-cache", type=Path, help="where the archives are, or are kept; default: thrown away")
    parser.add_argument("--tokenizer", type=Path, help="write a sentencepiece model trained on the captions here")
    parser.add_argument("--sheet", type=Path, help="write a PNG of a few concepts in every style here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache: Path = given.npm_cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        archives = fetch(cache)
        files = {style: read_pictures(archives[name], PACKAGES[name].pictures) for style, name in PICTURES.items()}
        concepts = [c for c in read_concepts(archives[WORDS]) if all(c.key in files[style] for style in STYLES)]
    made = list(samples(concepts, files))
    count = write_store(given.out, made, shard_rows=SHARD).samples
    print(f"{given.out}: {count} pictures of {len(concepts)} concepts")
    if given.tokenizer:
        texts = (text for sample in made for text in sample.record.captions.values())
        train_tokenizer(clauses(texts), given.tokenizer, pieces=PIECES)
    if given.sheet:
        write_sheet(given.sheet, concepts, files)


if __name__ == "__main__":
    main()
