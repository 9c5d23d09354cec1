from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from kolors_sdxl.architecture import VAEArchitecture
from kolors_sdxl.autoencoder import SDXLVAEAutoencoder
from kolors_sdxl.config import SDXLVAE
from kolors_sdxl.vae import VAE
from torch import Tensor, nn
from torch.nn import functional as F

from kolors_kernel import BuildContext
from kolors_kernel.errors import WeightsError
from kolors_kernel.values import LatentSpec
from kolors_weights.reading import read_config


def peer(**changes: Any) -> AutoencoderKL:
    """A small VAE of SDXL's shape made by diffusers, every weight random, the norms' too."""
    torch.manual_seed(0)
    sdxl_shaped: dict[str, Any] = {
        "block_out_channels": (16, 24, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
        "latent_channels": 5,
        "norm_num_groups": 8,
        "scaling_factor": 0.3,
    }
    net = AutoencoderKL(**{**sdxl_shaped, **changes}).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1) * 0.5, std=0.1)
    return net


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that diffusers saved a VAE in."""
    folder = tmp_path_factory.mktemp("vae")
    peer().save_pretrained(folder)
    return folder


def load(path: Path, dtype: str = "float32", **settings: Any) -> SDXLVAEAutoencoder:
    return SDXLVAE(path=path, **settings).build(BuildContext(dtype=dtype))


def pictures(dtype: torch.dtype = torch.float32, height: int = 20, width: int = 36) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_has_as_many_parameters_as_the_released_net() -> None:
    nothing: Any = None
    with torch.device("meta"):
        net = VAE(VAEArchitecture(), attention=nothing, op=nothing)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    assert parts == {"encoder": 34_163_592, "decoder": 49_490_179, "quant_conv": 72, "post_quant_conv": 20}
    assert sum(parts.values()) == 83_653_863


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-9)])
def test_encodes_and_decodes_as_diffusers_does(released: Path, dtype: str, bound: float) -> None:
    net = AutoencoderKL.from_pretrained(released, torch_dtype=getattr(torch, dtype))
    ours, images = load(released, dtype), pictures(getattr(torch, dtype))
    with torch.no_grad():
        posterior = net.encode(images).latent_dist
        mean, log_variance = ours.posterior(images)
        assert error(mean, posterior.mean) <= bound
        assert error(log_variance, posterior.logvar) <= bound
        latents = ours.encode(images)
        assert latents.shape == (2, 5, 5, 9)
        assert error(latents, posterior.mean * 0.3) <= bound
        wanted = net.decode(latents / 0.3).sample
        assert error(ours.decode(latents), wanted) <= bound
        assert error(ours.reconstruct(latents / 0.3), wanted) <= bound


def test_draws_from_the_posterior_as_diffusers_does(released: Path) -> None:
    net, ours = AutoencoderKL.from_pretrained(released), load(released)
    with torch.no_grad():
        drawn = ours.encode(pictures(), generator=torch.Generator().manual_seed(5))
        wanted = net.encode(pictures()).latent_dist.sample(generator=torch.Generator().manual_seed(5)) * 0.3
        assert error(drawn, wanted) <= 1e-5
        assert error(drawn, ours.encode(pictures())) > 1e-3


def test_gradients_of_a_training_are_those_of_diffusers(released: Path) -> None:
    net = AutoencoderKL.from_pretrained(released, torch_dtype=torch.float64)
    ours, images = load(released, "float64"), pictures(torch.float64)
    posterior = net.encode(images).latent_dist
    (F.mse_loss(net.decode(posterior.mean).sample, images) + posterior.kl().mean()).backward()
    mean, log_variance = ours.posterior(images)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
    (F.mse_loss(ours.reconstruct(mean), images) + kl).backward()
    wanted = {name: p.grad for name, p in net.named_parameters()}
    for name, parameter in ours.module.named_parameters():
        assert parameter.grad is not None and wanted[name] is not None
        if name.endswith("to_k.bias"):  # a constant added to every score changes nothing: its gradient is rounding
            assert parameter.grad.norm() < 1e-9
        else:
            assert error(parameter.grad, wanted[name]) <= 1e-9, name


def test_diffusers_loads_what_we_save(tmp_path: Path) -> None:
    made = SDXLVAE.tiny().build(BuildContext())
    made.scaling_factor = 0.77
    made.save(tmp_path)
    net, again = AutoencoderKL.from_pretrained(tmp_path), load(tmp_path)
    assert net.config.scaling_factor == again.scaling_factor == 0.77
    with torch.no_grad():
        latents = made.encode(pictures())
        assert error(latents, net.encode(pictures()).latent_dist.mean * 0.77) <= 1e-5
        assert torch.equal(again.encode(pictures()), latents)
        assert error(made.decode(latents), net.decode(latents / 0.77).sample) <= 1e-5
        assert torch.equal(again.decode(latents), made.decode(latents))


def test_saving_a_loaded_net_keeps_every_bit_and_every_setting(released: Path, tmp_path: Path) -> None:
    load(released).save(tmp_path)
    ours, wanted = load(tmp_path).module.state_dict(), peer().state_dict()
    assert ours.keys() == wanted.keys()
    assert all(torch.equal(ours[key], wanted[key]) for key in ours)
    old, new = read_config(released), read_config(tmp_path)
    assert {key for key in new if key[0] != "_" and new[key] != old[key]} == {"sample_size"}


def test_says_the_shape_of_its_latents_without_reading_weights(tmp_path: Path) -> None:
    assert SDXLVAE().spec() == LatentSpec(channels=4, downscale=8)
    peer().save_config(tmp_path)
    assert SDXLVAE(path=tmp_path).spec() == LatentSpec(channels=5, downscale=4)
    with pytest.raises(WeightsError, match="has no weights"):
        load(tmp_path)


@pytest.mark.parametrize(("height", "width"), [(20, 35), (21, 36), (1, 4)])
def test_refuses_pictures_that_do_not_divide(released: Path, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x {width} pixels .* multiples of 4"):
        load(released).encode(pictures(height=height, width=width))


def test_float16_runs_in_float32_where_the_net_would_overflow(tmp_path: Path) -> None:
    for upcast, wanted in ((True, torch.float32), (False, torch.float16)):
        peer(force_upcast=upcast).save_pretrained(tmp_path)
        ours = load(tmp_path, "float16")
        assert {p.dtype for p in ours.module.parameters()} == {wanted}
    peer().save_pretrained(tmp_path)
    images = pictures(torch.float16)
    with torch.no_grad():
        latents = load(tmp_path, "float16").encode(images)
        assert latents.dtype == torch.float16
        assert error(latents.float(), load(tmp_path).encode(images.float())) < 1e-3


@torch.no_grad()
def test_a_frozen_vae_gives_what_diffusers_gives_and_saves_every_bit(released: Path, tmp_path: Path) -> None:
    ours, theirs = load(released), AutoencoderKL.from_pretrained(released)
    ours.freeze()
    latents = ours.encode(pictures())
    assert error(latents / ours.scaling_factor, theirs.encode(pictures()).latent_dist.mode()) <= 1e-5
    assert error(ours.decode(latents), theirs.decode(latents / ours.scaling_factor).sample) <= 1e-5
    assert "packed" in ours.report()["weights"]
    ours.save(tmp_path)
    again = load(tmp_path).module.state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in load(released).module.state_dict().items())


def test_runs_in_bfloat16(released: Path) -> None:
    with torch.no_grad():
        half, full = load(released, "bfloat16"), load(released)
        assert error(half.encode(pictures()), full.encode(pictures())) < 5e-2
        assert half.decode(torch.ones(1, 5, 4, 4)).dtype == torch.float32


def test_refuses_a_vae_it_would_compute_wrongly(tmp_path: Path) -> None:
    peer(use_quant_conv=False).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="use_quant_conv is False"):
        SDXLVAE(path=tmp_path).spec()


class Enlarging(SDXLVAEAutoencoder):
    """Decodes each latent to its own pixels and looks at no neighbour, so tiles must not show at all."""

    def reconstruct(self, latents: Tensor) -> Tensor:
        self.largest = max(getattr(self, "largest", 0), *latents.shape[2:])
        return F.interpolate(latents[:, :3], scale_factor=float(self.architecture.downscale))


@settings(deadline=None, max_examples=60)
@given(height=st.integers(1, 40), width=st.integers(1, 40), tile=st.integers(4, 20))
def test_tiles_cover_the_picture_and_blend_without_a_seam(height: int, width: int, tile: int) -> None:
    module = VAE(VAEArchitecture(block_channels=(8, 8), groups=8), attention=min, op=min)  # type: ignore[arg-type]
    tiled = Enlarging(module, VAEArchitecture(block_channels=(8, 8), groups=8), tile=2 * tile)
    latents = torch.randn(2, 4, height, width, dtype=torch.float64)
    module.double()
    assert error(tiled.decode(latents), F.interpolate(latents[:, :3] / 0.13025, scale_factor=2.0)) <= 1e-6
    assert tiled.largest <= max(tile, min(tile, height, width))


def test_tiled_decoding_is_close_to_whole_decoding() -> None:
    torch.manual_seed(0)
    config = SDXLVAE(architecture=VAEArchitecture(block_channels=(16, 16, 16), layers_per_block=1, groups=4))
    ours = config.build(BuildContext())
    latents = torch.randn(1, 4, 40, 32) * 0.13025
    with torch.no_grad():
        whole = ours.decode(latents)
        far = {}
        for tile in (32, 64, 128, 256):
            ours.tile = tile
            contrast = (whole - whole.mean((2, 3), keepdim=True)).norm()
            far[tile] = float((ours.decode(latents) - whole).norm() / contrast)
    # Group norms and the attention see a tile for the picture; the larger the tile, the more alike the two are.
    assert far[32] > far[64] > far[128] > far[256] == 0
    assert far[128] < 0.1


@pytest.mark.parametrize("tile", [8, 30])
def test_refuses_tiles_that_are_too_small_or_do_not_divide(released: Path, tile: int) -> None:
    with pytest.raises(ValueError, match=f"tile is {tile} pixels, must be a multiple of 4 and at least 16"):
        load(released, tile=tile)
