from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_sdxl.autoencoder import SDXLVAEAutoencoder
from kolors_sdxl.config import SDXLVAE

from kolors_kernel import BuildContext
from kolors_kernel.errors import RunError, WeightsError
from kolors_weights.reading import open_state

STEM = "diffusion_pytorch_model"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a small VAE, whole and well."""
    SDXLVAE.tiny().build(BuildContext()).save(tmp_path)
    return tmp_path


def load(folder: Path) -> SDXLVAEAutoencoder:
    return SDXLVAE(path=folder).build(BuildContext())


def as_pickle(folder: Path, content: object) -> Path:
    (folder / f"{STEM}.safetensors").unlink(missing_ok=True)
    torch.save(content, folder / f"{STEM}.bin")
    return folder


@pytest.mark.parametrize("kept", [0, 5, 900, -1])
def test_a_truncated_file_is_named(saved: Path, kept: int) -> None:
    file = saved / f"{STEM}.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=rf"{STEM}\.safetensors is not a complete safetensors file"):
        load(saved)


def test_a_pickle_of_tensors_loads(saved: Path) -> None:
    wanted = dict(open_state(saved / f"{STEM}.safetensors"))
    found = load(as_pickle(saved, wanted)).module.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


class Intruder:
    """Writes a file when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)

    def __init__(self, mark: Path) -> None:
        self.mark = mark


def test_a_pickle_with_code_is_refused_and_not_run(saved: Path) -> None:
    state: dict[str, object] = {**open_state(saved / f"{STEM}.safetensors"), "x": Intruder(saved / "mark")}
    with pytest.raises(WeightsError, match=rf"{STEM}\.bin is damaged or holds more than tensors, perhaps code"):
        load(as_pickle(saved, state))
    (saved / f"{STEM}.bin").write_bytes(pickle.dumps(Intruder(saved / "mark"), protocol=2))
    with pytest.raises(WeightsError, match=rf"{STEM}\.bin"):
        load(saved)
    assert not (saved / "mark").exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"step": 3}, {"model": {"weight": torch.zeros(1)}}])
def test_a_pickle_of_something_else_is_named(saved: Path, content: object) -> None:
    with pytest.raises(WeightsError, match=rf"{STEM}\.bin should be a mapping from names to tensors"):
        load(as_pickle(saved, content))


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, 2000), place=st.integers(0, 600), byte=st.integers(0, 255), old=st.booleans())
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damage_to_a_pickle_never_gets_past_the_reader(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, byte: int, old: bool
) -> None:
    file = tmp_path_factory.mktemp("damaged") / "weights.bin"
    torch.save({"a": torch.ones(20), "b": torch.zeros(3, 4)}, file, _use_new_zipfile_serialization=not old)
    content = bytearray(file.read_bytes())
    content[min(place, len(content) - 1)] = byte
    file.write_bytes(content[:cut])
    try:
        state = dict(open_state(file))
    except WeightsError as error:
        assert str(file) in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


def shard(folder: Path) -> dict[str, str]:
    """Split the weights of a folder into two shards and an index; return which key is where."""
    from safetensors.torch import save_file

    file = folder / f"{STEM}.safetensors"
    state = dict(open_state(file))
    keys = sorted(state)
    places = {key: f"{STEM}-0000{1 + (n > 20)}-of-00002.safetensors" for n, key in enumerate(keys)}
    for name in set(places.values()):
        save_file({key: state[key] for key in keys if places[key] == name}, folder / name)
    file.unlink()
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return places


def test_shards_under_an_index_load_as_one(saved: Path) -> None:
    wanted = dict(open_state(saved / f"{STEM}.safetensors"))
    shard(saved)
    found = load(saved).module.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_missing_shard_is_named(saved: Path) -> None:
    name = next(iter(shard(saved).values()))
    (saved / name).unlink()
    with pytest.raises(WeightsError, match=rf"index\.json names the shard '{name}'"):
        load(saved)


def test_an_index_cannot_reach_outside_its_folder(saved: Path) -> None:
    (saved / f"{STEM}.safetensors").rename(saved.parent / "outside.safetensors")
    (saved / f"{STEM}.safetensors.index.json").write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(WeightsError, match="names the shard"):
        load(saved)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "\x80"])
def test_a_damaged_index_is_named(saved: Path, text: str) -> None:
    shard(saved)
    (saved / f"{STEM}.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(WeightsError, match=r"index\.json"):
        load(saved)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"block_out_channels": 3, "down_block_types": ["x"]}'])
def test_a_damaged_config_is_named(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        SDXLVAE(path=saved).spec()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_old_checkpoint_and_no_rubbish(saved: Path) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    other = SDXLVAE.tiny().build(BuildContext())
    with disk_of(10_000), pytest.raises(RunError, match=rf"{STEM}\.safetensors could not be written"):
        other.save(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before
    other.save(saved)
    assert (saved / f"{STEM}.safetensors").read_bytes() != before[f"{STEM}.safetensors"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="file/folder"):
        SDXLVAE.tiny().build(BuildContext()).save(tmp_path / "file" / "folder")
