from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_zarr.store.damage import DamagedSamples
from kolors_zarr.store.manifest import sealed
from kolors_zarr.store.places import Folder, Place, open_place
from kolors_zarr.store.reading import Store
from kolors_zarr.store.writing import write_store

from kolors_kernel.errors import DataError
from kolors_kernel.values import Sample, SampleRecord

N, ROWS = 10, 4
SHAPE = (4, 2, 2)
CAPTION = "caption_en_original"
SHARD = "samples/16x16/latents/c/1/0/0/0"
"""Samples 4 to 7, of which 5 and 6 are equal."""


def sample(i: int) -> Sample:
    captions = {"en_original": f"picture {i}"} if i % 2 else {}
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(min(i, 5) if i == 6 else i)).half()
    record = SampleRecord(f"id{i}", (16, 16), captions, {"n": str(i)})
    return Sample(record, f"image {i}".encode(), latents=latents)


LATENTS = torch.stack([each for i in range(N) if (each := sample(i).latents) is not None]).numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    write_store(path, (sample(i) for i in range(N)), shard_rows=ROWS)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "store")


@pytest.fixture(params=["folder", "memory"])
def opened(request: pytest.FixtureRequest, path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the store at `path`, as a folder or from memory."""
    files = fsspec.filesystem("memory")

    def open_it() -> Store:
        if request.param == "folder":
            return Store(Folder(path))
        for each in path.rglob("*"):
            if each.is_file():
                files.pipe_file(f"/kolors-damage/{each.relative_to(path).as_posix()}", each.read_bytes())
        return Store(open_place("memory://kolors-damage"))

    yield open_it
    if files.exists("/kolors-damage"):
        files.rm("/kolors-damage", recursive=True)


def change(file: Path, edit: Callable[[bytearray], Any]) -> None:
    data = bytearray(file.read_bytes())
    edit(data)
    file.write_bytes(data)


def flip(at: int) -> Callable[[bytearray], None]:
    def edit(data: bytearray) -> None:
        data[at] ^= 16

    return edit


def with_checksum(data: bytes) -> bytes:
    return data + crc32c(data).to_bytes(4, "little")


def latents(store: Store, numbers: range) -> tuple[np.ndarray, tuple[int, ...], str]:
    """Read latents; return them, the numbers of those that could not be read, and the message."""
    out = np.full((len(numbers), *SHAPE), 7, np.float16)
    try:
        store.read_into("latents", numbers, out)
    except DamagedSamples as error:
        return out, error.numbers, str(error)
    return out, (), ""


CHUNK = 2 * 16 + 4
DAMAGE = {
    "a bit in a chunk": (flip(5), (4,), "chunk does not match its checksum (sample 'id4' in chunk 0)"),
    "a bit in a checksum": (flip(CHUNK - 1), (4,), "chunk does not match its checksum (sample 'id4' in chunk 0)"),
    "a bit in a chunk of two rows": (flip(CHUNK), (5, 6), "checksum (samples 'id5' in chunk 1, 'id6' in chunk 2)"),
    "a bit in the index": (
        flip(-20),
        (4, 5, 6, 7),
        "the index of the shard does not match its checksum (samples 'id4'",
    ),
    "a bit in its checksum": (flip(-1), (4, 5, 6, 7), "the index of the shard does not match its checksum (samples"),
    "a file cut short": (lambda data: data.__delitem__(slice(-9, None)), (4, 5, 6, 7), "instead of 176"),
    "a file cut to nothing": (bytearray.clear, (4, 5, 6, 7), "the shard has 0 bytes instead of 176"),
    "a longer file": (lambda data: data.append(0), (4, 5, 6, 7), "the shard has 177 bytes instead of 176"),
}


class TestDamageIsFoundAndNamed:
    @pytest.mark.parametrize(("edit", "lost", "says"), DAMAGE.values(), ids=DAMAGE)
    def test_in_a_shard(
        self, path: Path, opened: Callable[[], Store], edit: Callable[[bytearray], Any], lost: tuple[int], says: str
    ) -> None:
        change(path / SHARD, edit)
        store = opened()
        out, numbers, message = latents(store, range(N))
        assert numbers == lost
        assert f"{store.place.url}/{SHARD}: the " in message
        assert says in message
        good = [i for i in range(N) if i not in lost]
        assert (out[good] == LATENTS[good]).all()
        assert (out[list(lost)] == 7).all()
        assert latents(store, range(8, N))[1] == ()
        assert [each.number for each in store.damages("latents", range(N))] == list(lost)

    def test_a_missing_shard(self, path: Path, opened: Callable[[], Store]) -> None:
        (path / SHARD).unlink()
        _, numbers, message = latents(opened(), range(N))
        assert numbers == (4, 5, 6, 7)
        assert f"{SHARD}: the shard is missing (samples 'id4' in chunk 0, 'id5' in chunk 1" in message

    def test_a_shard_that_is_another_one(self, path: Path, opened: Callable[[], Store]) -> None:
        shutil.copy(path / SHARD.replace("/1/", "/0/"), path / SHARD)
        assert latents(opened(), range(N))[1] == (4, 5, 6, 7)

    def test_a_chunk_that_is_not_there(self, path: Path, opened: Callable[[], Store]) -> None:
        self.rewrite_index(path, lambda index: index.__setitem__(5 - 4, 2**64 - 1))
        _, numbers, message = latents(opened(), range(N))
        assert numbers == (5,)
        assert f"{SHARD}: the chunk is not there (sample 'id5' in chunk 1)" in message

    def test_a_chunk_of_another_size(self, path: Path, opened: Callable[[], Store]) -> None:
        """One that matches its checksum, which is then of other bytes: eight more than the row has."""
        extra = with_checksum(bytes(2 * 16 + 8))
        change(path / SHARD, lambda data: data.__setitem__(slice(0, len(extra)), extra))
        self.rewrite_index(path, lambda index: index.__setitem__(0, (0, len(extra))))
        _, numbers, message = latents(opened(), range(4, 5))
        assert numbers == (4,)
        assert "the chunk has 44 bytes instead of 36" in message

    def rewrite_index(self, path: Path, edit: Callable[[Any], None]) -> None:
        """Change the index of the shard, and all checksums that guard it."""
        tail = 16 * ROWS + 4
        data = (path / SHARD).read_bytes()
        index = np.frombuffer(data[-tail:-4], "<u8").reshape(ROWS, 2).copy()
        edit(index)
        (path / SHARD).write_bytes(data[:-tail] + with_checksum(index.tobytes()))
        column = path / "index/1/object_latents/c/0/0"
        table = np.frombuffer(column.read_bytes()[:-4], "<u4").reshape(-1, 3).copy()
        table[1, 2] = crc32c(index.tobytes())
        column.write_bytes(with_checksum(table.tobytes()))

    def test_without_its_id_a_sample_is_named_by_its_number(self, path: Path, opened: Callable[[], Store]) -> None:
        change(path / SHARD, flip(0))
        (path / "samples/16x16/id/c/1").unlink()
        store = opened()
        assert "(sample number 4 in chunk 0)" in latents(store, range(N))[2]
        with pytest.raises(DamagedSamples, match=r"id/c/1: the shard is missing \(samples number 4 in chunk 0"):
            store.records(range(N))
        assert store.records([0, 8])[1].id == "id8"

    def test_many_are_counted_and_not_all_named(self, path: Path) -> None:
        for shard in range(3):
            (path / SHARD.replace("/1/", f"/{shard}/")).unlink()
        store = Store(Folder(path))
        with pytest.raises(DamagedSamples) as raised:
            store.read_into("latents", [0] * 9, np.zeros((9, *SHAPE), np.float16))
        assert str(raised.value).count("'id0'") == 5
        assert "4 more" in str(raised.value)

    def test_the_error_reaches_another_process_whole(self, path: Path) -> None:
        change(path / SHARD, flip(0))
        with pytest.raises(DamagedSamples) as raised:
            Store(Folder(path)).read_into("latents", [4], np.zeros((1, *SHAPE), np.float16))
        again = pickle.loads(pickle.dumps(raised.value))
        assert (str(again), again.damages, again.numbers) == (str(raised.value), raised.value.damages, (4,))

    def test_a_shard_that_may_not_be_read_is_no_damage(self, path: Path) -> None:
        (path / SHARD).unlink()
        (path / SHARD).mkdir()
        (path / SHARD / "x").touch()
        with pytest.raises(DataError, match="cannot be read") as raised:
            latents(Store(Folder(path)), range(N))
        assert not isinstance(raised.value, DamagedSamples)


class TestDamageToTexts:
    def test_a_missing_shard_of_captions_hurts_those_that_have_one(
        self, path: Path, opened: Callable[[], Store]
    ) -> None:
        (path / f"samples/16x16/{CAPTION}/c/1").unlink()
        store = opened()
        with pytest.raises(DamagedSamples) as raised:
            store.read_strings(CAPTION, range(N))
        assert raised.value.numbers == (5, 7)
        others = [i for i in range(N) if i not in raised.value.numbers]
        assert store.read_strings(CAPTION, others) == [f"picture {i}" if i % 2 else None for i in others]

    def test_a_record_raises_for_its_own_caption_only(self, path: Path) -> None:
        change(path / f"samples/16x16/{CAPTION}/c/1", flip(9))
        records = Store(Folder(path)).records(range(N))
        assert records[7].captions == {"en_original": "picture 7"}
        with pytest.raises(DamagedSamples, match="sample 'id5' in chunk 1") as raised:
            records[5].captions["en_original"]
        assert raised.value.numbers == (5,)

    def test_tags(self, path: Path) -> None:
        change(path / "samples/16x16/tags/c/0", flip(9))
        records = Store(Folder(path)).records(range(N))
        assert records[1].tags == {"n": "1"}
        with pytest.raises(DamagedSamples, match=r"tags/c/0: the chunk does not match its checksum \(sample 'id0'"):
            len(records[0].tags)


def read_all(place: Place) -> tuple[list[Any], set[int]]:
    """Everything that can be read of a store, sample by sample, and the numbers of those of which something cannot."""
    store = Store(place)
    index = [store.column(name).tolist() for name in ("size", "crop", "captions", "tag_n")]
    found, lost = [], set()
    for i in range(N):
        try:
            record, out = store.records([i])[0], np.empty((1, *SHAPE), np.float16)
            store.read_into("latents", [i], out)
            row = [record.id, record.size, dict(record.captions), dict(record.tags), store.read_bytes("image", [i])]
            found.append([*row, out.tobytes(), [column[i] for column in index]])
        except DamagedSamples as error:
            assert error.numbers == (i,)
            found.append(None)
            lost.add(i)
    return found, lost


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_whatever_bit_is_flipped_what_is_read_is_right_or_an_error(whole: Path, data: st.DataObject) -> None:
    """And it is an error unless it is metadata of zarr that makes no difference."""
    file = data.draw(st.sampled_from(sorted(each for each in whole.rglob("*") if each.is_file())))
    right = file.read_bytes()
    place = data.draw(st.integers(0, 8 * len(right) - 1))
    truth, _ = read_all(Folder(whole))
    wrong = bytearray(right)
    wrong[place // 8] ^= 1 << place % 8
    file.write_bytes(wrong)
    try:
        found, lost = read_all(Folder(whole))
    except DataError as error:
        assert str(file.relative_to(whole)) in str(error)
    else:
        assert found == [None if i in lost else row for i, row in enumerate(truth)]
        assert lost or file.name == "zarr.json"
    finally:
        file.write_bytes(right)


class TestStoresThatCannotBeOpened:
    def refusal(self, place: Path | str) -> str:
        with pytest.raises(DataError) as raised:
            Store(open_place(place))
        assert not isinstance(raised.value, DamagedSamples)
        return str(raised.value)

    def with_manifest(self, path: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
        """Change the manifest, and seal it again."""
        found = json.loads((path / "manifest.json").read_bytes())
        del found["crc32c"]
        edit(found)
        (path / "manifest.json").write_bytes(sealed(found))
        return path

    def test_nothing_there(self, tmp_path: Path) -> None:
        assert self.refusal(tmp_path / "none") == f"there is no store at {tmp_path}/none: it has no manifest.json"
        assert "there is no store at memory://nothing-here" in self.refusal("memory://nothing-here")
        (tmp_path / "file").touch()
        assert "there is no store at" in self.refusal(tmp_path / "file")

    def test_a_store_that_is_being_written(self, path: Path) -> None:
        (path / "manifest.json").unlink()
        (path / "parts").mkdir(exist_ok=True)
        (path / "parts" / "16x16-0.json").touch()
        assert "is still being written: it has parts/ and no manifest.json" in self.refusal(path)

    def test_a_store_without_its_manifest(self, path: Path) -> None:
        (path / "manifest.json").unlink()
        assert "was never published, or has lost its manifest.json" in self.refusal(path)

    def test_a_store_of_the_first_format(self, path: Path) -> None:
        (path / "manifest.json").unlink()
        (path / "zarr.json").write_text('{"attributes": {"kolors_store": {"version": 1, "count": 3}}}')
        assert "is of format version 1, and this installation reads 2; write it anew" in self.refusal(path)

    def test_a_newer_format(self, path: Path) -> None:
        says = self.refusal(self.with_manifest(path, lambda manifest: manifest.update(version=3)))
        assert "manifest.json is of format version 3, and this installation reads 2; upgrade" in says

    @pytest.mark.parametrize(
        "text",
        [
            *("", "{}", "[]", "null", '"x"', "{", '{"version": null, "crc32c": 1}', '{"version": 1e999}'),
            pytest.param("[" * 100_000, id="nested"),
        ],
    )
    def test_a_manifest_that_is_none(self, path: Path, text: str) -> None:
        (path / "manifest.json").write_text(text)
        assert f"{path}/manifest.json is damaged" in self.refusal(path)

    @pytest.mark.parametrize(
        ("edit", "says"),
        [
            (lambda manifest: manifest["groups"][0].update(samples=10**15), "1000000000000000 samples in"),
            (lambda manifest: manifest["groups"][0].update(shards=10**15), "in 1000000000000000 shards of"),
            (lambda manifest: manifest.update(shard_rows=10**15), "shards of 1000000000000000 rows; no store has more"),
            (lambda manifest: manifest["groups"][0].update(samples=10**40), "0" * 40),
            (
                lambda manifest: manifest["groups"][0]["columns"]["latents"].update(shape=[10**5] * 3),
                "column 'latents'",
            ),
            (
                lambda manifest: manifest.update(text={"dtype": "float16", "width": 10**15, "pooled": 1}),
                "conditioning of",
            ),
            (lambda manifest: manifest["groups"][0].update(name="100000x16"), "names the group '100000x16'"),
        ],
        ids=["samples", "shards", "rows", "more than 64 bits", "shape", "text", "group"],
    )
    def test_a_manifest_of_more_than_any_machine_holds(
        self, path: Path, edit: Callable[[dict[str, Any]], Any], says: str
    ) -> None:
        refusal = self.refusal(self.with_manifest(path, edit))
        assert refusal.startswith(f"{path}/manifest.json ") and says in refusal

    @pytest.mark.parametrize("name", ["..", "../../outside", "/etc", "..\\outside", "C:\\x", "16x16/../..", "", "16x0"])
    def test_a_group_that_leads_out_of_the_store(self, path: Path, name: str) -> None:
        says = self.refusal(self.with_manifest(path, lambda manifest: manifest["groups"][0].update(name=name)))
        assert f"manifest.json names the group {name!r}; a group is HEIGHTxWIDTH or any" in says

    @pytest.mark.parametrize("name", ["../id", "caption_../../x", "caption_/x", "caption_..\\x", "text_a/b", "passwd"])
    def test_a_column_that_leads_out_of_the_store(self, path: Path, name: str) -> None:
        def edit(manifest: dict[str, Any]) -> None:
            manifest["groups"][0]["columns"][name] = {"kind": "bytes" if name.startswith("text") else "string"}

        assert f"manifest.json has a column {name!r} in 16x16" in self.refusal(self.with_manifest(path, edit))

    @pytest.mark.parametrize("key", ["captions", "tags"])
    def test_a_caption_or_a_tag_that_leads_out_of_the_store(self, path: Path, key: str) -> None:
        value = {"../x": ["a"]} if key == "tags" else ["../x"]
        says = self.refusal(self.with_manifest(path, lambda manifest: manifest.update({key: value})))
        assert "names '../x', which is no name of a caption or a tag" in says

    def test_counts_that_disagree(self, path: Path) -> None:
        says = self.refusal(self.with_manifest(path, lambda manifest: manifest["groups"][0].update(samples=N + 1)))
        assert "the shards hold other numbers of samples than the manifest says" in says

    def test_an_index_that_is_missing_or_damaged(self, path: Path) -> None:
        change(path / "index/1/count/c/0", flip(0))
        assert f"{path}/index/1/count/c/0 does not match its checksum" in self.refusal(path)
        (path / "index/1/count/c/0").unlink()
        assert f"{path}/index/1/count/c/0 is missing" in self.refusal(path)

    def test_a_column_without_its_metadata(self, path: Path) -> None:
        document = path / "samples/16x16/latents/zarr.json"
        document.write_text("{")
        with pytest.raises(DataError, match=r"latents/zarr.json is damaged"):
            latents(Store(Folder(path)), range(N))
        document.unlink()
        with pytest.raises(DataError, match=r"latents/zarr.json is missing"):
            latents(Store(Folder(path)), range(N))

    def test_a_folder_without_the_right_to_read(self, path: Path) -> None:
        path.chmod(0)
        program = """
import os, sys
from kolors_kernel.errors import DataError
from kolors_zarr.store.places import open_place
from kolors_zarr.store.reading import Store
if os.geteuid() == 0:
    os.setuid(65534)  # root may read everything
try:
    Store(open_place(sys.argv[1]))
except DataError as error:
    print(error)
"""
        try:
            ran = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        finally:
            path.chmod(0o700)
        assert ran.stdout == f"{path}/manifest.json cannot be read: {os.strerror(13)}\n"
