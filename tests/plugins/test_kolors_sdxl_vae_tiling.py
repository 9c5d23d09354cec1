"""When the VAE decodes whole, one by one or in tiles, by how much memory is free."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from kolors_sdxl.architecture import VAEArchitecture
from kolors_sdxl.autoencoder import PEAK, SHARE, SDXLVAEAutoencoder
from kolors_sdxl.config import SDXLVAE
from kolors_sdxl.free_memory import free_bytes
from torch import Tensor

from kolors_kernel import BuildContext

MIB = 2**20
WHOLE = 512 * 512 * PEAK * 32 * 4
"""Bytes that decoding 512 x 512 pixels is taken to need, for a net of 32 channels at the second level in float32."""


class Watched(SDXLVAEAutoencoder):
    """Notes the latents that are decoded at a time, and draws nothing."""

    seen: list[tuple[int, ...]]

    def reconstruct(self, latents: Tensor) -> Tensor:
        self.seen.append(tuple(latents.shape))
        return latents[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3)


def watched(free: int | None, **settings: Any) -> Watched:
    architecture = VAEArchitecture(block_channels=(16, 32, 32), layers_per_block=1, groups=8, scaling_factor=1.0)
    config = SDXLVAE(architecture=architecture)
    made = Watched(config.build(BuildContext()).module, architecture, free=lambda device: free, **settings)  # type: ignore[arg-type]
    made.seen = []
    return made


def latents(batch: int, side: int = 128) -> Tensor:
    return torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(0))


def test_it_is_the_default_and_may_be_a_number_or_none() -> None:
    assert SDXLVAE().tile == "auto"
    assert [SDXLVAE(tile=tile).tile for tile in (64, None)] == [64, None]
    with pytest.raises(ValueError, match="tile"):
        SDXLVAE(tile="some")  # type: ignore[arg-type]


@pytest.mark.parametrize("free", [None, 2 * int(WHOLE / SHARE)])
def test_with_memory_enough_or_unknown_all_are_decoded_whole_and_together(
    free: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    autoencoder = watched(free, tile="auto")
    autoencoder.decode(latents(2))
    assert autoencoder.seen == [(2, 4, 128, 128)]
    assert autoencoder.report()["decoding"] == "whole"
    assert not caplog.messages


def test_pictures_that_fit_alone_but_not_together_are_decoded_one_by_one_to_the_same_pixels() -> None:
    autoencoder = watched(int(WHOLE / SHARE), tile="auto")
    found = autoencoder.decode(latents(3))
    assert autoencoder.seen == [(1, 4, 128, 128)] * 3
    assert torch.equal(found, watched(None, tile="auto").decode(latents(3)))


def test_a_picture_that_does_not_fit_is_decoded_in_tiles_that_do_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    free = int(WHOLE / SHARE) - 1
    autoencoder = watched(free, tile="auto")
    with caplog.at_level(logging.WARNING):
        assert autoencoder.decode(latents(1)).shape == (1, 3, 512, 512)
    largest = max(shape[2] * shape[3] for shape in autoencoder.seen) * 16
    assert len(autoencoder.seen) > 1
    assert largest * PEAK * 32 * 4 <= SHARE * free
    assert autoencoder.report()["decoding"] == "in tiles of 448 pixels"
    assert "512 x 512 pixels in tiles of 448: whole it takes about" in caplog.text
    assert "tile: null decodes whole" in caplog.text


def test_tiles_do_not_get_too_small_to_be_of_use_however_little_is_free() -> None:
    autoencoder = watched(1 * MIB, tile="auto")
    autoencoder.decode(latents(1))
    assert max(shape[2] for shape in autoencoder.seen) == 64
    assert autoencoder.report()["decoding"] == "in tiles of 256 pixels"


@pytest.mark.parametrize(("tile", "side"), [(None, 128), (128, 32)])
def test_what_is_set_holds_whatever_is_free(tile: int | None, side: int) -> None:
    autoencoder = watched(1, tile=tile)
    autoencoder.decode(latents(2))
    assert {shape[2:] for shape in autoencoder.seen} == {(side, side)}


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


MEMINFO = {"proc/meminfo": "MemTotal:  8000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\n"}
STAT = "anon 1\ninactive_file 100\nactive_file 20\ntotal_inactive_file 100\ntotal_active_file 20\n"


def group(folder: str, limit: str, used: int, version: int) -> dict[str, str]:
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    where = f"sys/fs/cgroup/{folder}"
    return {f"{where}/{names[0]}": f"{limit}\n", f"{where}/{names[1]}": f"{used}\n", f"{where}/memory.stat": STAT}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MEMINFO, 4000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b\n"} | group("a/b", "5000", 3000, 2), 2120),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b\n"} | group("a/b", "max", 3000, 2), 4000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b\n"} | group("a", "900", 1000, 2) | group("a/b", "max", 1, 2), 20),
        (MEMINFO | {"proc/self/cgroup": "0::/\n"} | group("", "5000", 3000, 2), 2120),
        (MEMINFO | {"proc/self/cgroup": "4:memory:/x\n1:cpu:/\n0::/\n"} | group("memory/x", "700", 600, 1), 220),
        (MEMINFO | {"proc/self/cgroup": "4:cpu,cpuacct:/x\n"} | group("memory/x", "700", 600, 1), 4000 * 1024),
    ],
    ids=["nothing is known", "machine", "group", "no limit", "group above", "in a container", "version 1", "no memory"],
)
def test_free_is_what_the_machine_and_every_group_above_leave(
    files: dict[str, str], free: int | None, tmp_path: Path
) -> None:
    assert free_bytes(torch.device("cpu"), root=system(tmp_path, files)) == free


def test_this_machine_has_some_memory_free_or_does_not_say() -> None:
    found = free_bytes(torch.device("cpu"))
    assert found is None or found > 0
    assert free_bytes(torch.device("meta")) is None
