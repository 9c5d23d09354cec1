from __future__ import annotations

import json
import logging
import pickle
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import fsspec
import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.store import index_reading, shard_files, shard_ranges
from kolors_zarr.store.conditioning import pack
from kolors_zarr.store.damage import DamagedSamples
from kolors_zarr.store.places import Folder, Place, open_place
from kolors_zarr.store.reading import Store
from kolors_zarr.store.requests import Requests
from kolors_zarr.store.writing import write_store

from kolors_kernel.errors import DataError
from kolors_kernel.values import NO_CAPTION, Conditioning, Sample, SampleRecord

ROWS = 4
SHAPES = [(4, 2, 3), (4, 3, 2)]


def conditioning(text: str) -> Conditioning:
    generator = torch.Generator().manual_seed(sum(text.encode()))
    return Conditioning(torch.randn(1, 3, 5, generator=generator), torch.randn(1, 6, generator=generator))


def sample(i: int) -> Sample:
    """One of two shapes; every third lacks the Chinese caption, and only the first shape has the synthetic one."""
    shape = SHAPES[i % 5 // 3]
    captions = {"en_original": f"picture {i}"} | ({"zh_original": f"第{i}张图"} if i % 3 else {})
    captions |= {"en_synthetic": "A picture."} if shape == SHAPES[0] and i % 2 else {}
    texts = {key: conditioning(text) for key, text in captions.items()} | {NO_CAPTION: conditioning("")}
    size = (100 + i, 50, i, 2, 8 * shape[1], 8 * shape[2])
    record = SampleRecord(f"id{i}", size[:2], captions, {"split": "train", "风格": f"扁平{i % 4}"})
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(i)).half()
    pixels = torch.full((3, 8 * shape[1], 8 * shape[2]), i, dtype=torch.uint8)
    return Sample(record, f"image {i}".encode() * (1 + i), pixels, latents, texts, size)


SAMPLES = [sample(i) for i in range(23)]
BY_NUMBER = sorted(SAMPLES, key=lambda each: each.size[4:] if each.size else ())  # groups by size, each in its order
N = len(SAMPLES)
LATENTS = [cast(torch.Tensor, each.latents).numpy() for each in BY_NUMBER]
SPLIT = sum(1 for latents in LATENTS if latents.shape == SHAPES[0])
PARTS = (range(SPLIT), range(SPLIT, N))  # the groups


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path, SAMPLES, shard_rows=ROWS)
    return path


@pytest.fixture(scope="module")
def memory(folder: Path) -> Iterator[str]:
    url = "memory://kolors-reader"
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            files.pipe_file(f"/kolors-reader/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield url
    files.rm("/kolors-reader", recursive=True)


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest) -> Store:
    return Store(open_place(request.getfixturevalue(request.param)))


class Counted:
    """A place that is not a folder, and counts what is asked of it."""

    def __init__(self, path: Path) -> None:
        self._folder = Folder(path)
        self.url = f"counted://{path}"
        self.asked: list[tuple[str, Any]] = []

    def read(self, key: str) -> bytes:
        self.asked.append((key, None))
        return self._folder.read(key)

    def read_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.asked.append((key, list(ranges)))
        return self._folder.read_ranges(key, ranges)

    def size(self, key: str) -> int:
        return self._folder.size(key)

    def keys(self, prefix: str) -> Iterator[str]:
        return self._folder.keys(prefix)


def counted(path: Path) -> tuple[Counted, Store]:
    place = Counted(path)
    return place, Store(cast(Place, place))


def latents(store: Store, numbers: Sequence[int]) -> np.ndarray:
    out = np.full((len(numbers), *LATENTS[numbers[0]].shape), np.nan, np.float16)
    store.read_into("latents", numbers, out)
    return out


def by_zarr(folder: Path, column: str) -> list[Any]:
    """What zarr-python reads of a column, in the order of the samples."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    root = zarr.open_group(folder, mode="r")
    found = []
    for group in manifest["groups"]:
        array = cast(Any, root[f"samples/{group['name']}/{column}"])
        found += [array[i : i + 1][0] for i in range(group["samples"])]  # only the last shard of a group is not full
    return found


class TestTheSameSamplesWhateverReadsThem:
    def test_arrays(self, store: Store, folder: Path) -> None:
        for part in PARTS:
            expected = np.stack([LATENTS[i] for i in part])
            assert latents(store, part).tobytes() == expected.tobytes()
            pixels = np.stack([cast(torch.Tensor, BY_NUMBER[i].pixels).permute(1, 2, 0).numpy() for i in part])
            out = np.empty(pixels.shape, np.uint8)
            store.read_into("pixels", part, out)
            assert (out == pixels).all()
        for mine, zarrs in zip(LATENTS, by_zarr(folder, "latents"), strict=True):
            assert mine.tobytes() == zarrs.tobytes()

    def test_strings(self, store: Store, folder: Path) -> None:
        for column in ("id", "caption_zh_original", "caption_en_original", "caption_en_synthetic"):
            found = store.read_strings(column, range(N))
            assert [text or "" for text in found] == by_zarr(folder, column)
            key = column.removeprefix("caption_")
            assert found == [each.record.captions.get(key) if key != "id" else each.record.id for each in BY_NUMBER]

    def test_bytes(self, store: Store, folder: Path) -> None:
        images = store.read_bytes("image", range(N))
        assert images == by_zarr(folder, "image") == [each.image for each in BY_NUMBER]
        views = store.read_views("image", range(N))
        assert views == images
        assert all(view.readonly for view in views)
        texts = store.read_bytes("text_en_original", range(N))
        assert texts == by_zarr(folder, "text_en_original")
        assert texts == [pack(each.conditioning["en_original"]) for each in BY_NUMBER]

    def test_the_index(self, store: Store, folder: Path) -> None:
        root = zarr.open_group(folder, mode="r")
        for name in ("size", "crop", "captions", "tag_split", "count", "object_latents"):
            assert (store.column(name) == cast(Any, root[f"index/1/{name}"])[:]).all()
        assert store.column("size").tolist() == [list(each.record.size) for each in BY_NUMBER]
        numbers = [N - 1, 0, 5, 5]
        assert (store.rows("crop", numbers) == store.column("crop")[numbers]).all()
        assert store.starts.tolist() == [0, SPLIT, N]

    def test_records(self, store: Store) -> None:
        numbers = [N - 1, 3, 3, SPLIT]
        assert store.records(numbers) == [BY_NUMBER[i].record for i in numbers]

    @given(data=st.data())
    @settings(max_examples=40, deadline=None)
    def test_any_samples_in_any_order(self, folder: Path, data: st.DataObject) -> None:
        store = Store(Folder(folder))
        part = data.draw(st.sampled_from(PARTS))
        numbers = data.draw(st.lists(st.sampled_from(part), min_size=1, max_size=40))
        assert latents(store, numbers).tobytes() == b"".join(LATENTS[i].tobytes() for i in numbers)
        mixed = data.draw(st.lists(st.integers(0, N - 1), max_size=40))
        assert store.read_strings("id", mixed) == [BY_NUMBER[i].record.id for i in mixed]


def test_a_store_says_what_it_holds(store: Store) -> None:
    assert store.samples == N
    assert store.holds == {"images", "latents", "captions", "conditioning"}
    assert store.most_index_bytes > 0


class TestRecordsAreLazy:
    def test_texts_are_read_only_when_they_are_looked_at(self, folder: Path) -> None:
        place, store = counted(folder)
        records = store.records(range(N))
        assert "en_original" in records[0].captions
        assert sorted(records[1].captions) == sorted(BY_NUMBER[1].record.captions)
        columns = {key.split("/")[2] for key, _ in place.asked if key.startswith("samples/")}
        assert columns == {"id"}
        assert store.captions([0, N - 1]) == [tuple(records[i].captions) for i in (0, N - 1)]
        assert records[2].captions["en_original"] == BY_NUMBER[2].record.captions["en_original"]
        asked = len(place.asked)
        assert records[7].captions["en_original"] == BY_NUMBER[7].record.captions["en_original"]
        assert len(place.asked) == asked

    def test_ids_that_are_known_are_not_read_again(self, folder: Path) -> None:
        place, store = counted(folder)
        numbers = list(range(N)) * 12  # more than share the reading of a caption
        ids = [BY_NUMBER[i].record.id for i in numbers]
        assert store.records(numbers, ids) == [BY_NUMBER[i].record for i in numbers]
        assert not [key for key, _ in place.asked if "/id/" in key]

    def test_mappings_are_as_good_as_dicts(self, folder: Path) -> None:
        record, plain = Store(Folder(folder)).records([4])[0], BY_NUMBER[4].record
        for found, wanted in ((record.captions, plain.captions), (record.tags, plain.tags)):
            assert found == wanted
            assert wanted == found
            assert len(found) == len(wanted)
            assert repr(found) == repr(dict(found))
            with pytest.raises(KeyError):
                found["no such key"]
            assert found.get("no such key") is None
        assert type(pickle.loads(pickle.dumps(record)).captions) is dict
        assert pickle.loads(pickle.dumps(record)) == plain


class TestArgumentsThatCannotBeRight:
    @pytest.mark.parametrize(
        "out",
        [
            np.zeros((2, 4, 2, 3), np.float32),
            np.zeros((2, 4, 3, 2), np.float16),
            np.zeros((3, 4, 2, 3), np.float16),
            np.zeros((4, 4, 2, 3), np.float16)[::2],
        ],
        ids=["dtype", "shape", "rows", "strides"],
    )
    def test_an_array_that_does_not_fit(self, folder: Path, out: np.ndarray) -> None:
        with pytest.raises(
            ValueError, match=r"latents of 16x24 is read into a contiguous array of float16 \[2, 4, 2, 3\]"
        ):
            Store(Folder(folder)).read_into("latents", [0, 1], out)

    def test_samples_of_two_shapes_in_one_array(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="24x16"):
            Store(Folder(folder)).read_into("latents", [0, N - 1], np.zeros((2, 4, 2, 3), np.float16))

    @pytest.mark.parametrize("number", [-1, N])
    def test_a_sample_that_is_not_there(self, folder: Path, number: int) -> None:
        store = Store(Folder(folder))
        for ask in (store.records, lambda numbers: store.rows("size", numbers)):
            with pytest.raises(ValueError, match=f"there are 0 to {N - 1}"):
                ask([0, number])

    def test_a_column_that_is_not_there(self, folder: Path) -> None:
        store = Store(Folder(folder))
        with pytest.raises(ValueError, match=r"no column 'caption_fr'; it has .*caption_en_original"):
            store.read_strings("caption_fr", [0])
        with pytest.raises(ValueError, match="no column 'tag_level'; it has size, "):
            store.column("tag_level")

    def test_samples_are_located_once_for_many_columns(self, store: Store) -> None:
        where = store.locate([N - 1, 0, 5, 5])
        assert len(where) == 4
        assert store.locate(where) is where
        assert store.records(where) == [BY_NUMBER[i].record for i in (N - 1, 0, 5, 5)]
        assert store.read_bytes("image", where) == [BY_NUMBER[i].image for i in (N - 1, 0, 5, 5)]
        ids = [BY_NUMBER[i].record.id for i in (N - 1, 0, 5, 5)]
        assert store.read_strings("id", where.only([0, 3])) == [ids[0], None, None, ids[3]]
        assert store.read_strings("id", where.only([1, 2]).only([2])) == [None, None, ids[2], None]
        assert store.rows("size", where).tolist() == [list(BY_NUMBER[i].record.size) for i in (N - 1, 0, 5, 5)]

    def test_conditioning_of_a_caption_that_a_sample_lacks(self, folder: Path) -> None:
        lacking = next(i for i, each in enumerate(BY_NUMBER) if "zh_original" not in each.record.captions)
        with pytest.raises(ValueError, match=f"sample number {lacking} has no text_zh_original"):
            Store(Folder(folder)).read_bytes("text_zh_original", [lacking])

    def test_no_samples_at_all(self, store: Store) -> None:
        assert (store.records([]), store.read_bytes("image", []), len(store.rows("size", []))) == ([], [], 0)


class TestWhatIsAskedOfAPlace:
    def test_opening_reads_the_manifest_and_the_counts(self, folder: Path) -> None:
        place, _ = counted(folder)
        assert [key for key, _ in place.asked] == ["manifest.json", "index/1/count/c/0"]

    def test_neighbours_come_in_one_request_and_the_index_of_a_shard_in_one_more(self, folder: Path) -> None:
        place, store = counted(folder)
        store.read_bytes("image", range(2 * ROWS))
        ranges = [ranges for key, ranges in place.asked if "/image/c/" in key]
        assert sorted(len(each) for each in ranges) == [1, 1, 1, 1]
        store.read_bytes("image", range(2 * ROWS))
        assert len([key for key, _ in place.asked if "/image/c/" in key]) == 6

    def test_what_lies_far_apart_or_is_too_large_comes_apart(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place, store = counted(folder)
        images = [each.image for each in BY_NUMBER]
        monkeypatch.setattr(shard_ranges, "GAP", 0)
        assert store.read_bytes("image", [0, 1, 3]) == [images[i] for i in (0, 1, 3)]
        assert len([key for key, _ in place.asked if "/image/c/" in key]) == 1 + 2
        monkeypatch.setattr(shard_ranges, "MOST_OF_A_REQUEST", 1)
        assert store.read_bytes("image", [3, 1, 0]) == [images[i] for i in (3, 1, 0)]
        assert len([key for key, _ in place.asked if "/image/c/" in key]) == 1 + 2 + 3

    def test_only_so_much_is_on_its_way_while_nobody_takes_it(self) -> None:
        asked: list[int] = []
        answers = Requests(3).answers(lambda i: asked.append(i) or -i, range(100))  # type: ignore[func-returns-value]
        assert [next(answers) for _ in range(5)] == [0, -1, -2, -3, -4]
        assert max(asked) < 5 + 3
        assert list(answers) == [-i for i in range(5, 100)]

    @pytest.mark.parametrize(("allowed", "most"), [(12, 3), (resource.RLIM_INFINITY, 18)])
    def test_no_more_files_are_mapped_than_the_process_can_spare(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, most: int
    ) -> None:
        monkeypatch.setattr(shard_files.resource, "getrlimit", lambda _: (allowed, allowed))
        store = Store(Folder(folder))
        for _ in range(2):
            for column in ("id", "tags", "caption_en_original"):
                store.read_strings(column, range(N))
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
        assert len(mapped) == most
        assert store.read_strings("id", range(N)) == [each.record.id for each in BY_NUMBER]


LENGTH = 103
PIECE = 10


@contextmanager
def small_pieces() -> Iterator[None]:
    """An index in small pieces, of which three of `size` fit into memory."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("documents", "publishing", "index_reading"):
            patch.setattr(f"kolors_zarr.store.{module}.INDEX_CHUNK", PIECE)
        patch.setattr(index_reading, "MOST_BYTES", 3 * PIECE * 4)
        yield


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pieces") / "store"
    records = (SampleRecord(str(i), (1000 + i, 7), {}) for i in range(LENGTH))
    tiny = torch.zeros(4, 1, 1)
    with small_pieces():
        write_store(path, (Sample(record, latents=tiny, size=(*record.size, 0, 0, 8, 8)) for record in records))
    return path


class TestColumnsOfTheIndexInPieces:
    def test_a_column_is_put_together(self, pieces: Path) -> None:
        with small_pieces():
            assert Store(Folder(pieces)).column("size")[:, 0].tolist() == list(range(1000, 1000 + LENGTH))

    @given(calls=st.lists(st.lists(st.integers(0, LENGTH - 1), max_size=60), max_size=5))
    @settings(max_examples=40, deadline=None)
    def test_any_rows_at_bounded_memory(self, pieces: Path, calls: list[list[int]]) -> None:
        with small_pieces():
            column = Store(Folder(pieces))._index["size"]
            assert column.most_bytes == 3 * PIECE * 4
            for numbers in calls:
                assert column.rows(np.array(numbers, np.int64))[:, 0].tolist() == [1000 + i for i in numbers]

    def test_only_the_pieces_that_are_needed_are_read(self, pieces: Path) -> None:
        with small_pieces():
            place, store = counted(pieces)
            store.rows("size", [25, 99, 21])
            store.rows("size", [90])
        assert sorted(key for key, _ in place.asked if "/size/" in key) == ["index/1/size/c/2/0", "index/1/size/c/9/0"]


class TestColumnsStoredOtherwise:
    CODECS = (
        pytest.param({"shards": ROWS, "compressors": zarr.codecs.ZstdCodec()}, id="zstd in shards"),
        pytest.param({"shards": None, "compressors": None}, id="a file for each row"),
    )

    def rewrite(self, folder: Path, path: Path, column: str, options: dict[str, Any]) -> Path:
        """Copy the store, and store a column of its first group as zarr-python does it with these options."""
        shutil.copytree(folder, path)
        group = cast(Any, zarr.open_group(path / "samples" / "16x24"))
        old = group[column]
        values, shape = old[:], old.shape[1:]
        shards = None if options["shards"] is None else (options["shards"], *shape)
        shutil.rmtree(path / "samples" / "16x24" / column)
        with warnings.catch_warnings():  # that the type of the pictures is not in zarr's core specification
            warnings.simplefilter("ignore")
            new = group.create_array(
                column,
                shape=old.shape,
                dtype=old.metadata.data_type,
                chunks=(1, *shape),
                shards=shards,
                compressors=options["compressors"],
            )
        new[:] = values
        return path

    @pytest.mark.parametrize("options", CODECS)
    @pytest.mark.parametrize("column", ["latents", "caption_zh_original", "image"])
    def test_are_read_through_zarr_with_one_line_that_says_why(
        self, folder: Path, tmp_path: Path, column: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        store = Store(Folder(self.rewrite(folder, tmp_path / "store", column, options)))
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                if column == "latents":
                    assert latents(store, [3, 1]).tobytes() == LATENTS[3].tobytes() + LATENTS[1].tobytes()
                elif column == "image":
                    assert store.read_bytes("image", range(N)) == [each.image for each in BY_NUMBER]
                else:
                    expected = [each.record.captions.get("zh_original") for each in BY_NUMBER]
                    assert store.read_strings(column, range(N)) == expected
        (line,) = caplog.messages
        assert line.startswith(f"{store.place.url}/samples/16x24/{column} is read through zarr-python")
        assert ("zstd" in line) if options["shards"] else ("chunk_grid" in line)

    @pytest.mark.parametrize("options", CODECS)
    def test_are_checked_for_missing_files_all_the_same(
        self, folder: Path, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        path = self.rewrite(folder, tmp_path / "store", "latents", options)
        (path / "samples/16x24/latents/c/1/0/0/0").unlink()
        store, lost = Store(Folder(path)), range(ROWS, 2 * ROWS) if options["shards"] else range(1, 2)
        out = np.zeros((SPLIT, *SHAPES[0]), np.float16)
        with pytest.raises(DamagedSamples, match=r"c/1/0/0/0 is missing .*'id") as raised:
            store.read_into("latents", range(SPLIT), out)
        assert raised.value.numbers == tuple(lost)
        good = [i for i in range(SPLIT) if i not in lost]
        assert out[good].tobytes() == b"".join(LATENTS[i].tobytes() for i in good)

    def test_are_checked_as_far_as_their_codecs_do(self, folder: Path, tmp_path: Path) -> None:
        codecs = (zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec())
        path = self.rewrite(folder, tmp_path / "store", "latents", {"shards": ROWS, "compressors": codecs})
        shard = path / "samples/16x24/latents/c/0/0/0/0"
        shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])
        with pytest.raises(DamagedSamples) as raised:
            latents(Store(Folder(path)), range(ROWS))
        assert len(raised.value.numbers) == 1

    def test_a_column_of_other_values_than_the_manifest_says_is_an_error(self, folder: Path, tmp_path: Path) -> None:
        path = shutil.copytree(folder, tmp_path / "store")
        document = path / "samples/16x24/latents/zarr.json"
        document.write_text(document.read_text().replace('"float16"', '"float32"'))
        with pytest.raises(DataError, match=r"latents/zarr.json says data_type float32, and the manifest float16"):
            latents(Store(Folder(path)), [0])


class TestSharingAStore:
    def test_a_pickled_store_stays_with_what_was_published_when_it_was_opened(
        self, folder: Path, tmp_path: Path
    ) -> None:
        path = shutil.copytree(folder, tmp_path / "store")
        kept = pickle.dumps(Store(Folder(path)))
        (path / "manifest.json").write_text("{}")
        store = pickle.loads(kept)
        assert store.records([N - 1]) == [BY_NUMBER[-1].record]
        assert latents(store, [2]).tobytes() == LATENTS[2].tobytes()

    def test_threads_read_the_same_store_at_once(self, store: Store) -> None:
        together = threading.Barrier(4)

        def read(seed: int) -> bool:
            numbers = np.random.default_rng(seed).permutation(SPLIT)
            together.wait()
            right = latents(store, numbers).tobytes() == b"".join(LATENTS[i].tobytes() for i in numbers)
            return right and store.records(numbers) == [BY_NUMBER[i].record for i in numbers]

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(16)))

    def test_another_process_reads_it_without_torch_and_zarr(self, folder: Path) -> None:
        program = """
import pickle, sys
store = pickle.load(sys.stdin.buffer)
record = store.records([3])[0]
print(record.id, record.captions["en_original"], len(store.read_bytes("image", [3])[0]))
print({"torch", "zarr"} & set(sys.modules))
"""
        ran = subprocess.run(
            [sys.executable, "-c", program], input=pickle.dumps(Store(Folder(folder))), capture_output=True, check=True
        )
        three = BY_NUMBER[3]
        expected = f"{three.record.id} {three.record.captions['en_original']} {len(three.image or b'')}\nset()\n"
        assert ran.stdout.decode() == expected
