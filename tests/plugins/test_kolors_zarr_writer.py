from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.store import index_writing
from kolors_zarr.store.conditioning import Texts, form_of, pack, unpack_arrays
from kolors_zarr.store.documents import group_document, index_document, samples_document
from kolors_zarr.store.manifest import Column, Manifest, TextForm
from kolors_zarr.store.places import Folder, Place, exists, open_place
from kolors_zarr.store.refused import Refused
from kolors_zarr.store.remote_places import FileSystem
from kolors_zarr.store.shard import encode_element, encode_shard
from kolors_zarr.store.sink import ZarrStoreSink
from kolors_zarr.store.writing import write_store
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.dtype import VariableLengthBytes, VariableLengthUTF8
from zarr.core.sync import sync
from zarr.storage import FsspecStore, MemoryStore

from kolors_kernel.errors import DataError, RunError
from kolors_kernel.testing.strategies import sample_records
from kolors_kernel.values import NO_CAPTION, Conditioning, Part, Sample, SampleRecord

SIZES = [(16, 24), (24, 16), (16, 16)]


def record(i: int) -> SampleRecord:
    captions = {"zh_original": f"第{i}张图", "en_original": f"picture {i % 2}"}
    if i % 3 == 1:
        captions |= {"en_synthetic": f"A picture of {i}.", "zh_synthetic": ""}
    return SampleRecord(f"id{i}", (8 + i, 16), captions, {"split": "train", "风格": f"s{i % 3}", "url": f"http://{i}"})


def text(content: str) -> Conditioning:
    generator = torch.Generator().manual_seed(sum(content.encode()))
    tokens = torch.randn(1, 5, 6, generator=generator)
    tokens[:, 1:4] = tokens[:, :1]  # four rows are one
    return Conditioning(tokens.half(), torch.randn(1, 3, generator=generator).half())


def sample(i: int) -> Sample:
    """Return a sample that holds everything, of one of three shapes."""
    generator = torch.Generator().manual_seed(i)
    size = SIZES[i % len(SIZES)]
    captions = {key: caption for key, caption in record(i).captions.items() if caption}
    return Sample(
        record(i),
        image=f"picture {i % 4}".encode(),
        pixels=torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator),
        latents=torch.randn(4, size[0] // 8, size[1] // 8, generator=generator).half(),
        conditioning={key: text(caption) for key, caption in captions.items()} | {NO_CAPTION: text("")},
        size=(8 + i, 16, 1, 2, *size),
    )


def opened(path: Path | str) -> zarr.Group:
    store = path if isinstance(path, Path) else FsspecStore.from_url(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the specification of bytes of variable length is not final
        return zarr.open_group(store, mode="r")


def column(group: zarr.Group, path: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return group[path][:]  # type: ignore[index]


def manifest_of(place: Place) -> Manifest:
    return Manifest.from_bytes(place.read("manifest.json"), where="it")


def content(place: Place) -> Mapping[str, bytes]:
    return {key: place.read(key) for key in place.keys("")}


# What zarr reads


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_zarr_reads_every_column_of_a_published_store_right(where: str, tmp_path: Path) -> None:
    url = tmp_path / "s" if where == "folder" else f"memory://{uuid4().hex}/s"
    samples = [sample(i) for i in range(23)]
    manifest = write_store(url, iter(samples), shard_rows=3)
    root = opened(url)
    assert [(group.name, group.samples, group.shards) for group in manifest.groups] == [
        ("16x16", 7, 3),
        ("16x24", 8, 3),
        ("24x16", 8, 3),
    ]
    for group in manifest.groups:
        own = [each for each in samples if group.name == "{4}x{5}".format(*(each.size or ()))]
        rows = {name: column(root, f"samples/{group.name}/{name}") for name in group.columns}
        assert all(len(values) == 9 for values in rows.values())
        for i, each in enumerate(own):
            assert rows["id"][i] == each.record.id
            assert json.loads(rows["tags"][i]) == each.record.tags
            assert rows["image"][i] == each.image
            assert each.pixels is not None and each.latents is not None
            assert np.array_equal(rows["pixels"][i], each.pixels.permute(1, 2, 0).numpy())
            assert np.array_equal(rows["latents"][i], each.latents.numpy())
            for key in manifest.captions:
                assert rows[f"caption_{key}"][i] == each.record.captions.get(key, "")
            for key in (*manifest.captions, NO_CAPTION):
                expected = each.conditioning.get(key)
                assert rows[f"text_{key}"][i] == (b"" if expected is None else pack(expected))
        assert list(rows["id"][len(own) :]) == [""] * (9 - len(own))


def numbered(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples in the order of a store."""
    return sorted(samples, key=lambda each: (each.size or (0,) * 6)[4:])


def test_the_index_says_of_every_sample_what_it_is(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(23)]
    manifest = write_store(tmp_path / "s", samples, shard_rows=4)
    root, expected = opened(tmp_path / "s"), numbered(samples)
    assert column(root, "index/1/size").tolist() == [list(each.record.size) for each in expected]
    assert column(root, "index/1/crop").tolist() == [list((each.size or ())[2:]) for each in expected]
    bits = [
        {key for i, key in enumerate(manifest.captions) if row >> i & 1} for row in column(root, "index/1/captions")
    ]
    assert bits == [{key for key, caption in each.record.captions.items() if caption} for each in expected]
    for name in ("split", "风格", "url"):
        values = ["", *manifest.tags[name]]
        assert values[1:] == sorted(values[1:])
        assert [values[code] for code in column(root, f"index/1/tag_{name}")] == [e.record.tags[name] for e in expected]
    assert column(root, "index/1/count").tolist() == [4, 3, 4, 4, 4, 4]


def test_the_index_names_size_and_checksum_of_every_shard(tmp_path: Path) -> None:
    manifest = write_store(tmp_path / "s", (sample(i) for i in (1, 3, 5, 6, 9, 12, 15)), shard_rows=2)
    root, there = opened(tmp_path / "s"), 0
    objects = content(open_place(tmp_path / "s"))
    shards = [(group.name, shard) for group in manifest.groups for shard in range(group.shards)]
    for name, made in manifest.groups[0].columns.items():
        table = column(root, f"index/1/object_{name}")
        for (group, shard), (low, high, checksum) in zip(shards, table.tolist(), strict=True):
            key = f"samples/{group}/{name}/c/{shard}" + "/0" * len(made.shape)
            data = objects.get(key, b"")
            there += key in objects
            assert (low + (high << 32), checksum) == (len(data), int.from_bytes(data[-4:], "little"))
    assert 0 < there < len(shards) * len(manifest.groups[0].columns)  # some captions are in some shards only


@settings(max_examples=15, deadline=None)
@given(
    records=st.lists(sample_records(), min_size=1, max_size=9, unique_by=lambda each: each.id), rows=st.integers(1, 4)
)
def test_any_records_are_in_the_index(records: list[SampleRecord], rows: int) -> None:
    url = f"memory://{uuid4().hex}/s"
    manifest = write_store(url, (Sample(each, image=b"x") for each in records), shard_rows=rows)
    root = opened(url)
    assert column(root, "index/1/size").tolist() == [list(each.size) for each in records]
    assert not column(root, "index/1/crop").any()
    bits = column(root, "index/1/captions")
    for bit, key in enumerate(manifest.captions):
        assert [bool(row >> bit & 1) for row in bits] == [bool(each.captions.get(key)) for each in records]
        texts = column(root, f"samples/any/caption_{key}")[: len(records)]
        assert list(texts) == [each.captions.get(key, "") for each in records]
    assert set(manifest.tags) == {name for each in records for name in each.tags}
    for name, values in manifest.tags.items():
        codes = column(root, f"index/1/tag_{name}")
        assert [None if code == 0 else values[code - 1] for code in codes] == [each.tags.get(name) for each in records]


def test_a_long_index_is_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("documents", "publishing"):
        monkeypatch.setattr(f"kolors_zarr.store.{module}.INDEX_CHUNK", 4)
    write_store(tmp_path / "s", (sample(i) for i in range(0, 27, 3)), shard_rows=2)
    assert len(list((tmp_path / "s/index/1/crop/c").iterdir())) == 3
    root = opened(tmp_path / "s")
    assert column(root, "index/1/size").tolist() == [[8 + i, 16] for i in range(0, 27, 3)]
    assert column(root, "index/1/count").tolist() == [2, 2, 2, 2, 1]


def test_a_tag_of_too_many_values_is_read_from_the_samples_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_writing, "MOST_VALUES", 3)
    manifest = write_store(tmp_path / "s", (sample(i) for i in range(9)), shard_rows=2)
    assert set(manifest.tags) == {"split", "风格"}
    assert sorted(key.name for key in (tmp_path / "s/index/1").glob("tag_*")) == ["tag_split", "tag_风格"]
    assert json.loads(column(opened(tmp_path / "s"), "samples/16x24/tags")[0])["url"] == "http://0"


# The documents of zarr


def created(**settings: Any) -> bytes:
    """Return the document that zarr itself writes for an array."""
    store = MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.create_array(store, compressors=[Crc32cCodec()], **settings)
    found = sync(store.get("zarr.json", default_buffer_prototype()))
    assert found is not None
    return found.to_bytes()


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"),
    [
        ("string", VariableLengthUTF8(), ()),
        ("bytes", VariableLengthBytes(), ()),
        ("array", "uint8", (16, 24, 3)),
        ("array", "float16", (4, 2, 3)),
        ("array", "float32", (16, 8, 8)),
    ],
)
def test_columns_of_samples_are_described_as_zarr_does(kind: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    made = Column(kind=kind, dtype=dtype if kind == "array" else "", shape=shape)
    expected = created(shape=(15, *shape), shards=(5, *shape), chunks=(1, *shape), dtype=dtype)
    assert samples_document(made, shards=3, shard_rows=5) == expected


@pytest.mark.parametrize("shape", [(7,), (7, 4), (70_000,), (70_000, 2)])
@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_columns_of_the_index_are_described_as_zarr_does(dtype: str, shape: tuple[int, ...]) -> None:
    chunks = (min(shape[0], 65_536), *shape[1:])
    assert index_document(dtype, shape) == created(shape=shape, chunks=chunks, dtype=dtype)


def test_groups_are_described_as_zarr_does() -> None:
    store = MemoryStore()
    zarr.create_group(store, zarr_format=3, attributes={"kolors_store": {"version": 2}})
    found = sync(store.get("zarr.json", default_buffer_prototype()))
    assert found is not None
    assert group_document({"kolors_store": {"version": 2}}) == found.to_bytes()


# Shards

CHUNKS = st.lists(st.one_of(st.none(), st.sampled_from([b"a", b"bb", b"\0" * 40]), st.binary(max_size=20)), max_size=9)


@settings(max_examples=25, deadline=None)
@given(chunks=CHUNKS, spare=st.integers(0, 3))
def test_zarr_finds_every_chunk_of_a_shard(chunks: list[bytes | None], spare: int) -> None:
    rows = len(chunks) + spare or 1
    place = open_place(f"memory://{uuid4().hex}/s")
    place.write("zarr.json", samples_document(Column(kind="bytes"), shards=1, shard_rows=rows))
    place.write("c/0", encode_shard([None if each is None else encode_element(each) for each in chunks], rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = zarr.open_array(FsspecStore.from_url(place.url), mode="r")[:]
    assert list(found) == [each or b"" for each in chunks] + [b""] * (rows - len(chunks))  # type: ignore[arg-type]


def test_equal_chunks_are_kept_once() -> None:
    chunk, other = bytes(1000), bytes(999) + b"1"
    assert len(encode_shard([chunk] * 100, 100)) == 1004 + 16 * 100 + 4
    assert len(encode_shard([chunk, other] * 50, 100)) == 2 * 1004 + 16 * 100 + 4


def test_a_shard_is_not_overfilled() -> None:
    with pytest.raises(ValueError, match="3 chunks do not fit into a shard of 2"):
        encode_shard([b"x"] * 3, 2)


def test_a_changed_bit_is_found_by_zarr_too(tmp_path: Path) -> None:
    write_store(tmp_path / "s", (sample(i) for i in range(0, 9, 3)), shard_rows=3)
    file = tmp_path / "s/samples/16x24/latents/c/0/0/0/0"
    changed = bytearray(file.read_bytes())
    changed[5] ^= 1
    file.write_bytes(changed)
    with pytest.raises(ValueError, match="checksum"):
        column(opened(tmp_path / "s"), "samples/16x24/latents")


# Conditioning


def attention(tokens: np.ndarray, bias: np.ndarray, seed: int) -> np.ndarray:
    """Attention in float64 of random queries over random projections of the rows: the formula."""
    generator = np.random.default_rng(seed)
    query, to_key, to_value = generator.normal(size=(7, 4)), *generator.normal(size=(2, tokens.shape[-1], 4))
    scores = query @ (tokens.astype(np.float64) @ to_key).T / 2 + bias
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: np.ndarray = weights / weights.sum(axis=-1, keepdims=True) @ (tokens.astype(np.float64) @ to_value)
    return result


def unpacked(elements: list[bytes], form: TextForm) -> Texts:
    return unpack_arrays(elements, form, lambda name, shape, dtype: np.empty(shape, dtype))


biases = st.one_of(st.floats(-3, 3, width=32), st.just(-np.inf))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), biases), min_size=1, max_size=12).filter(
        lambda rows: any(np.isfinite(bias) for _, bias in rows)
    ),
    dtype=st.sampled_from(["float16", "float32"]),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_over_the_merged_rows_is_attention_over_all(
    rows: list[tuple[int, float]], dtype: str, biased: bool, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(size=(3, 5)).astype(dtype)
    tokens = values[[value for value, _ in rows]]
    bias = np.array([each for _, each in rows], np.float32) if biased else np.zeros(len(rows), np.float32)
    whole = Conditioning(
        torch.from_numpy(tokens[None]),
        torch.ones(1, 2, dtype=getattr(torch, dtype)),
        torch.from_numpy(bias[None]) if biased else None,
    )
    longer = Conditioning(torch.ones(1, 13, 5, dtype=getattr(torch, dtype)).cumsum(1), whole.pooled)
    merged = unpacked([pack(whole), pack(longer)], form_of(whole))
    assert merged.key_bias is not None
    assert merged.tokens.shape == (2, 13, 5)
    assert np.isfinite(merged.key_bias[0]).sum() == np.count_nonzero(np.diff(tokens[:, 0], prepend=np.nan)) or biased
    found = attention(merged.tokens[0], merged.key_bias[0], seed)
    assert np.allclose(found, attention(tokens, bias, seed), rtol=0, atol=2e-6)


def test_padded_prompts_become_their_tokens_and_one_row() -> None:
    def prompt(count: int) -> Conditioning:
        tokens = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(count)).half()
        tokens[:, : 256 - count] = tokens[:, :1]  # padded on the left
        return Conditioning(tokens, torch.zeros(1, 4).half())

    prompts = [prompt(count) for count in (0, 9, 20)]
    merged = unpacked([pack(each) for each in prompts], form_of(prompts[0]))
    assert merged.tokens.shape == (3, 21, 8)
    assert merged.key_bias is not None
    assert merged.key_bias.dtype == np.float32
    assert np.isneginf(merged.key_bias).sum(axis=1).tolist() == [20, 11, 0]
    assert not merged.tokens[0, 1:].any()
    assert merged.key_bias[:, 0] == pytest.approx(np.log([256, 247, 236]))
    assert len(pack(prompts[1])) == 10 * (8 * 2 + 4) + 4 * 2


def test_nothing_merged_and_nothing_padded_needs_no_bias() -> None:
    plain = Conditioning(torch.arange(12.0).reshape(1, 3, 4), torch.ones(1, 2))
    zero = replace(plain, key_bias=torch.zeros(1, 3))
    merged = unpacked([pack(plain), pack(zero)], form_of(plain))
    assert merged.key_bias is None
    assert np.array_equal(merged.tokens, np.stack([plain.tokens[0].numpy()] * 2))
    assert np.array_equal(merged.pooled, np.ones((2, 2)))


def test_rows_that_are_equal_in_value_but_not_in_bits_are_not_merged() -> None:
    signs = Conditioning(torch.tensor([[[0.0], [-0.0]]]), torch.ones(1, 1))
    assert unpacked([pack(signs)], form_of(signs)).tokens.shape == (1, 2, 1)


def test_bytes_that_are_no_conditioning_are_refused() -> None:
    whole = text("x")
    with pytest.raises(DataError, match=r"of \d+ bytes is not of rows of 6 and a pooled vector of 3 in float16"):
        unpacked([pack(whole)[:-1]], form_of(whole))


# The sink


def parts_of(count: int, rows: int = 3) -> list[Part]:
    """Return the first samples in parts of one shape each."""
    found = []
    for shape, size in enumerate(SIZES):
        own = range(shape, count, len(SIZES))
        found += [Part(f"part {shape} {i}", size, own[i : i + rows]) for i in range(0, len(own), rows)]
    return found


def sink_at(place: Place | Path) -> ZarrStoreSink:
    return ZarrStoreSink(open_place(place) if isinstance(place, Path) else place, shard_rows=3)


def write_all(place: Place | Path, parts: Sequence[Part], order: Callable[[Sequence[Part]], Sequence[Part]]) -> None:
    for part in order(sink_at(place).missing(parts)):
        sink_at(place).write(part, (sample(row) for row in part.rows))  # each in a process of its own, as it were


def write_and_publish(sink: ZarrStoreSink, parts: Sequence[Part]) -> None:
    for part in sink.missing(parts):
        sink.write(part, [sample(row) for row in part.rows])
    sink.publish(parts)


def test_parts_in_any_order_make_the_store_that_one_stream_makes(tmp_path: Path) -> None:
    parts = parts_of(20)
    for name, order in (("forward", list), ("backward", lambda parts: parts[::-1])):
        write_all(tmp_path / name, parts, order)
        assert sink_at(tmp_path / name).publish(parts) == 20
    write_store(tmp_path / "stream", (sample(i) for i in range(20)), shard_rows=3)
    forward, backward, stream = (content(open_place(tmp_path / each)) for each in ("forward", "backward", "stream"))
    assert forward == backward == stream
    assert not (tmp_path / "forward/parts").exists()


class Failing(FileSystem):
    """A place that is full after so many writes."""

    def __init__(self, url: str, writes: int) -> None:
        super().__init__(url)
        self.left = writes

    def write(self, key: str, data: bytes) -> None:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        self.left -= 1
        super().write(key, data)


def test_after_a_failure_at_any_moment_the_next_run_completes_the_store() -> None:
    parts, memory = parts_of(7), f"memory://{uuid4().hex}"
    write_and_publish(sink_at(open_place(f"{memory}/whole")), parts)
    whole = content(open_place(f"{memory}/whole"))
    for writes in range(0, len(whole), 9):
        place = open_place(f"{memory}/{writes}")
        with pytest.raises(RunError, match=r"the disk is full .*; what is finished stays for the next run"):
            write_and_publish(sink_at(Failing(place.url, writes)), parts)
        assert not exists(place, "manifest.json")
        write_and_publish(sink_at(place), parts)
        assert content(place) == whole


def test_finished_parts_are_not_missing_and_not_written_again(tmp_path: Path) -> None:
    parts = parts_of(20)
    sink = sink_at(tmp_path / "s")
    assert sink.missing(parts) == parts
    sink.write(parts[2], (sample(row) for row in parts[2].rows))
    before = content(sink.place)

    def unread() -> Iterator[Sample]:
        raise AssertionError("a finished part needs no samples")
        yield

    sink.write(parts[2], unread())
    assert sink_at(tmp_path / "s").missing(parts) == [part for part in parts if part is not parts[2]]
    assert content(sink.place) == before


@pytest.mark.parametrize("published", [False, True])
def test_a_worker_thought_dead_changes_nothing_when_it_comes_back(published: bool, tmp_path: Path) -> None:
    parts, late, before = parts_of(3), sink_at(tmp_path / "s"), dict[str, bytes]()
    late.missing(parts)

    def overtaken() -> Iterator[Sample]:
        write_all(tmp_path / "s", parts, list)
        if published:
            sink_at(tmp_path / "s").publish(parts)
        before.update(content(late.place))
        yield replace(sample(0), image=b"not what it was")

    late.write(parts[0], overtaken())
    assert content(late.place) == before


def test_a_run_goes_on_only_with_the_same_parts(tmp_path: Path) -> None:
    parts = parts_of(20)
    sink_at(tmp_path / "s").missing(parts)
    others = [
        parts[1:],
        parts[::-1],
        [*parts[:-1], replace(parts[-1], rows=[0, 1])],
        [*parts[:-1], replace(parts[-1], name="x")],
        [*parts[:-1], replace(parts[-1], size=(8, 8))],
    ]
    for other in others:
        with pytest.raises(DataError, match=f"unfinished store at {tmp_path}/s was begun from other samples"):
            sink_at(tmp_path / "s").missing(other)
        with pytest.raises(DataError, match="begun from other samples"):
            sink_at(tmp_path / "s").publish(other)
    with pytest.raises(DataError, match="begun from other samples"):
        ZarrStoreSink(open_place(tmp_path / "s"), shard_rows=4).missing(parts)
    assert sink_at(tmp_path / "s").missing(parts) == parts


def test_nothing_that_is_there_is_written_over(tmp_path: Path) -> None:
    parts = parts_of(3)
    write_all(tmp_path / "published", parts, list)
    sink_at(tmp_path / "published").publish(parts)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/precious").write_text("x")
    before = content(open_place(tmp_path))
    for name in ("published", "folder"):
        with pytest.raises(DataError, match=f"already something at {tmp_path}/{name}; a store is never overwritten"):
            sink_at(tmp_path / name).missing(parts)
        with pytest.raises(DataError, match=f"already something at {tmp_path}/{name}"):
            write_store(tmp_path / name, [sample(0)])
        with pytest.raises(DataError, match="no store is being written"):
            sink_at(tmp_path / name).write(parts[0], [])
    assert content(open_place(tmp_path)) == before


def test_what_is_not_a_part_of_the_store_is_refused(tmp_path: Path) -> None:
    sink, parts = sink_at(tmp_path / "s"), parts_of(9)
    for wrong, why in (
        ([parts[0], parts[0]], "two parts are called 'part 0 0'"),
        ([Part("a", (8, 8), range(4))], "part 'a' has 4 samples, and a shard 3 rows"),
    ):
        with pytest.raises(ValueError, match=why):
            sink.missing(wrong)
    sink.missing(parts)
    with pytest.raises(DataError, match="part 'a' is not one of those"):
        sink.write(Part("a", (8, 8), range(3)), [])
    with pytest.raises(ValueError, match="part 'part 0 0' has 3 samples, and 2 came"):
        sink.write(parts[0], [sample(0), sample(3)])
    with pytest.raises(DataError, match=r"parts/16x16-0.json is missing: this part was not written"):
        sink.publish(parts)


class Overtaken(Folder):
    """A folder in which someone else publishes just before we do."""

    def create(self, key: str, data: bytes) -> bool:
        if key == "manifest.json":
            sink_at(self.path).publish(parts_of(3))
        return super().create(key, data)


def test_of_two_who_publish_one_succeeds(tmp_path: Path) -> None:
    write_all(tmp_path / "s", parts_of(3), list)
    with pytest.raises(DataError, match="was published by another process meanwhile"):
        sink_at(Overtaken(tmp_path / "s")).publish(parts_of(3))
    assert manifest_of(open_place(tmp_path / "s")).samples == 3


def test_a_damaged_part_row_is_not_published(tmp_path: Path) -> None:
    write_all(tmp_path / "s", parts_of(3), list)
    row = tmp_path / "s/parts/16x16-0.json"
    row.write_bytes(row.read_bytes().replace(b'"id2"', b'"id3"'))
    with pytest.raises(DataError, match=r"parts/16x16-0.json does not match its checksum"):
        sink_at(tmp_path / "s").publish(parts_of(3))


def test_what_was_refused_is_listed_beside_the_manifest(tmp_path: Path) -> None:
    parts = [Part("a", (0, 0), range(3)), Part("b", (0, 0), range(2)), Part("c", (8, 8), range(2))]
    sink = sink_at(tmp_path / "s")
    sink.missing(parts)
    kept = [Sample(record(i), image=b"x") for i in range(4)]
    sink.write(parts[0], [kept[0], Refused("b.png", "it is empty"), kept[1]])
    sink.write(parts[1], [Refused("c.png", "坏了"), Refused("d.png", "too large")])
    sink.write(parts[2], kept[2:])
    assert sink.publish(parts, refused=[Refused("e.txt", "no picture")]) == 4
    manifest = manifest_of(sink.place)
    assert [(group.name, group.samples, group.shards) for group in manifest.groups] == [("any", 2, 1), ("8x8", 2, 1)]
    lines = [json.loads(line) for line in sink.place.read("refused.jsonl").decode().splitlines()]
    assert [line["input"] for line in lines] == ["e.txt", "b.png", "c.png", "d.png"]
    assert lines[2]["reason"] == "坏了"
    assert manifest.refused == 4
    assert list(column(opened(tmp_path / "s"), "samples/any/id")) == ["id0", "id1", ""]


def test_shards_without_samples_keep_their_number_between_others(tmp_path: Path) -> None:
    parts = [Part(str(i), (0, 0), range(1)) for i in range(4)]
    sink = sink_at(tmp_path / "s")
    sink.missing(parts)
    for i, part in enumerate(parts):
        sink.write(part, [Sample(record(i), image=b"x")] if i in (0, 2) else [Refused(str(i), "bad")])
    assert sink.publish(parts) == 2
    root = opened(tmp_path / "s")
    assert column(root, "index/1/count").tolist() == [1, 0, 1]
    assert list(column(root, "samples/any/id")) == ["id0", "", "", "", "", "", "id2", "", ""]


def test_a_store_of_nothing_is_not_published(tmp_path: Path) -> None:
    parts = [Part("a", (0, 0), range(1))]
    sink = sink_at(tmp_path / "s")
    sink.missing(parts)
    sink.write(parts[0], [Refused("x", "bad")])
    with pytest.raises(DataError, match=rf"no samples to store in {tmp_path}/s; 1 inputs were refused"):
        sink.publish(parts)


# What cannot be stored

PLAIN = Sample(record(0), latents=torch.zeros(4, 2, 2), conditioning={NO_CAPTION: text("")}, size=(8, 16, 0, 0, 16, 16))
BARE = replace(PLAIN, record=SampleRecord("bare", (8, 16), {}))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"latents": None}, "'x' has neither an image nor pixels nor latents"),
        ({"conditioning": {}}, "'x' .*holds? latents.*, but 'bare' holds latents and conditioning"),
        ({"image": b"x"}, "'x' .*holds? image and latents.*, but 'bare' holds latents"),
        ({"latents": torch.zeros(4, 2, 3)}, r"'x' .*\[4, 2, 3\], but 'bare' .*\[4, 2, 2\]"),
        ({"latents": torch.zeros(4, 2, 2).half()}, "'x' .*float16.*, but 'bare' .*float32"),
        ({"latents": torch.zeros(4, 2, 2).bfloat16()}, "'x' has latents in bfloat16; a store keeps float16 or float32"),
        ({"conditioning": {"a": text("")}}, r"'x' has conditioning for \['a'\], but needs it for \['empty'\]"),
        ({"conditioning": {NO_CAPTION: Conditioning(torch.ones(1, 2, 7), torch.ones(1, 3))}}, "'x' .*width=7"),
        ({"size": (1, 1, 0, 0, 1, 1)}, r"'x' is \(8, 16\) by its record and \(1, 1\) by its size"),
        ({"size": (8, 16, 0, 0, 65536, 1)}, "'x' has the size .*; a store keeps sides of 1 to 65535"),
        ({"record": SampleRecord("x", (0, 16), {}), "size": None}, r"'x' has the size \(0, 16"),
        ({"record": SampleRecord("x", (8, 16), {"../up": "a"}), "conditioning": {}}, "'x' has a caption under '../up'"),
        ({"record": SampleRecord("x\ud800", (8, 16), {})}, "has text that is not Unicode"),
    ],
)
@pytest.mark.parametrize("shard_rows", [1, 2])
def test_samples_that_do_not_go_together_are_refused_by_name(
    tmp_path: Path, change: dict[str, Any], why: str, shard_rows: int
) -> None:
    second = replace(BARE, **{"record": SampleRecord("x", (8, 16), {}), **change})
    with pytest.raises(ValueError, match=why):
        write_store(tmp_path / "s", [BARE, second], shard_rows=shard_rows, size_of=lambda each: (16, 16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (Conditioning(torch.ones(1, 2, 3).bfloat16(), torch.ones(1, 3).bfloat16()), "not bfloat16"),
        (Conditioning(torch.ones(1, 2, 3).half(), torch.ones(1, 3)), "not float16 and float32"),
        (Conditioning(torch.ones(2, 2, 3), torch.ones(2, 3)), "not in a batch of 2"),
        (
            Conditioning(torch.ones(1, 2, 3), torch.ones(1, 3), torch.full((1, 2), -torch.inf)),
            "minus infinity in every",
        ),
        (Conditioning(torch.ones(1, 2, 3), torch.ones(1, 3), extra={"lora": 1}), r"does not keep the extra \['lora'\]"),
    ],
)
def test_conditioning_that_cannot_be_kept_is_refused(made: Conditioning, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        pack(made)


def test_more_captions_than_bits_are_refused(tmp_path: Path) -> None:
    many = {f"c{i}": "x" for i in range(17)}
    samples = [Sample(SampleRecord("a", (8, 8), many), image=b"x")]
    with pytest.raises(ValueError, match="at most 16 fit"):
        write_store(tmp_path / "s", samples)
    split = [Sample(SampleRecord(key, (8, 8), {key: "x"}), image=b"x") for key in many]
    with pytest.raises(ValueError, match="has room for 16"):
        write_store(tmp_path / "s", split, shard_rows=1)


# A stream that fails


def test_an_id_comes_once_and_a_shard_has_only_so_many_rows(tmp_path: Path) -> None:
    again = [sample(0), sample(1), sample(0)]
    with pytest.raises(ValueError, match="two samples have the id 'id0'"):
        write_store(tmp_path / "s", again)
    with pytest.raises(ValueError, match=r"a shard of 1048577 rows: need 1 to 1048576"):
        write_store(tmp_path / "s", [sample(0)], shard_rows=2**20 + 1)
    assert not [path for path in (tmp_path / "s").rglob("*") if path.is_file()]


def test_a_stream_that_fails_leaves_nothing_and_its_error_stays_itself(tmp_path: Path) -> None:
    def stopped(error: BaseException) -> Iterator[Sample]:
        yield from (sample(i) for i in range(4))
        raise error

    for error in (KeyboardInterrupt(), FileNotFoundError("gone.png")):
        with pytest.raises(type(error)):
            write_store(tmp_path / "s", stopped(error), shard_rows=2)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="no samples"):
        write_store(tmp_path / "s", [])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard))  # no file may grow beyond: the write fails half way
    try:
        with pytest.raises(RunError, match=r"could not be written: a file grew too large .*nothing was left"):
            write_store(tmp_path / "s", [Sample(record(0), image=bytes(1 << 20))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file/s"):
        with pytest.raises(RunError, match=f"the store {path} could not be written"):
            write_store(path, [sample(0)])
        with pytest.raises(RunError, match=f"the store {path} could not be written"):
            sink_at(path).missing(parts_of(3))


def test_stores_are_written_without_torch_being_imported_for_it() -> None:
    code = "import sys, kolors_zarr.store.writing, kolors_zarr.store.sink; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
