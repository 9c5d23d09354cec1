"""The contracts of the parts with weights: text encoder, autoencoder, backbone, adapter."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kolors_kernel.kinds import AdapterConfig, AutoencoderConfig, BackboneConfig, TextEncoderConfig
from kolors_kernel.protocols import Autoencoder, Backbone, TextEncoder
from kolors_kernel.registry import discover
from kolors_kernel.testing.contracts.component import ComponentContract
from kolors_kernel.testing.strategies import AWKWARD_PROMPTS
from kolors_kernel.values import Conditioning, ConditioningSpec, LatentSpec


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return unit Gaussian numbers that depend on nothing but the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    """Fail unless two tensors agree to `tolerance`, relative to the largest value of the second."""
    torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance * max(1.0, wanted.abs().max().item()))


def assert_trainable(module: nn.Module, result: Tensor) -> None:
    """Fail unless the gradient of `result` reaches every parameter that asks for one."""
    result.float().square().mean().backward()  # type: ignore[no-untyped-call]
    left_out = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert not left_out, f"no gradient reaches {', '.join(left_out)}"


class TextEncoderContract(ComponentContract[TextEncoderConfig]):
    """What every text encoder promises."""

    prompts = ("一只戴墨镜的猫", "a cat wearing sunglasses")

    def build(self, folder: Path, dtype: str = "float32") -> TextEncoder:
        """Make the encoder."""
        return self.config.build(self.context(folder, dtype))

    def encode(self, encoder: TextEncoder, *prompts: str) -> Conditioning:
        """Encode without gradients; what the encoder warns about is left aside."""
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return encoder.encode(list(prompts))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_gives_the_shapes_of_its_spec(self, tmp_path: Path, dtype: str) -> None:
        """No more rows than the spec says, of its widths, in the dtype it was built in."""
        spec, found = self.config.spec(), self.encode(self.build(tmp_path, dtype), *self.prompts)
        rows = found.tokens.shape[1]
        assert found.tokens.shape == (len(self.prompts), rows, spec.width)
        assert 1 <= rows <= spec.tokens
        assert found.pooled.shape == (len(self.prompts), spec.pooled)
        assert found.tokens.dtype == found.pooled.dtype == getattr(torch, dtype)
        assert found.key_bias is None or found.key_bias.shape == (len(self.prompts), rows)

    @pytest.mark.parametrize("prompt", AWKWARD_PROMPTS, ids=lambda text: ascii(text[:12]))
    def test_encodes_any_text(self, tmp_path: Path, prompt: str) -> None:
        """Empty, very long, control characters, text that looks like a special token: finite numbers come out."""
        found = self.encode(self.build(tmp_path), prompt)
        assert found.tokens.isfinite().all()
        assert found.pooled.isfinite().all()
        if found.key_bias is not None:
            assert not found.key_bias.isnan().any()
            assert (found.key_bias > -math.inf).any(dim=1).all(), "a prompt has no row that may be attended"

    def test_says_the_same_twice(self, tmp_path: Path) -> None:
        """The same prompts give the same numbers, and the list of prompts is left alone."""
        encoder, prompts = self.build(tmp_path), list(self.prompts)
        first, second = self.encode(encoder, *prompts), self.encode(encoder, *prompts)
        assert torch.equal(first.tokens, second.tokens)
        assert torch.equal(first.pooled, second.pooled)
        assert prompts == list(self.prompts)

    def test_reads_each_prompt_by_itself(self, tmp_path: Path) -> None:
        """What stands beside a prompt in the batch does not change it; another prompt is encoded differently."""
        encoder = self.build(tmp_path)
        both, alone = self.encode(encoder, *self.prompts), self.encode(encoder, self.prompts[0])
        assert_close(both.pooled[:1], alone.pooled)
        assert not torch.allclose(both.pooled[0], both.pooled[1])

    def test_says_aloud_what_it_cuts(self, tmp_path: Path) -> None:
        """Where the end of a long text makes no difference it was cut, and a warning must have said so."""
        encoder, text = self.build(tmp_path), "一只猫 and a dog " * 500
        with torch.no_grad(), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            cut, changed = (encoder.encode([text + end]) for end in ("on a red roof", "在绿色的河边"))
        same = cut.tokens.shape == changed.tokens.shape and torch.equal(cut.tokens, changed.tokens)
        assert said or not (same and torch.equal(cut.pooled, changed.pooled))

    def test_lets_gradients_through(self, tmp_path: Path) -> None:
        """With grad mode on the result depends on the weights, with it off it does not."""
        encoder = self.build(tmp_path)
        assert not self.encode(encoder, *self.prompts).tokens.requires_grad
        module = getattr(encoder, "module", None)
        if module is not None and any(p.requires_grad for p in module.parameters()):
            found = encoder.encode(list(self.prompts))
            assert found.tokens.requires_grad
            assert_trainable(module, torch.cat([found.tokens.flatten(), found.pooled.flatten()]))


class AutoencoderContract(ComponentContract[AutoencoderConfig]):
    """What every autoencoder promises."""

    def build(self, folder: Path, dtype: str = "float32") -> Autoencoder:
        """Make the autoencoder."""
        return self.config.build(self.context(folder, dtype))

    def images(self, dtype: str = "float32") -> Tensor:
        """Return two pictures [2, 3, 8f, 4f] in [-1, 1]."""
        side = self.config.spec().downscale
        return random_tensor(2, 3, 8 * side, 4 * side, dtype=getattr(torch, dtype)).tanh()

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_gives_the_shapes_of_its_spec(self, tmp_path: Path, dtype: str) -> None:
        """Latents are 1/f of the picture's side, and decoding gives the picture's shape back."""
        spec, autoencoder, images = self.config.spec(), self.build(tmp_path, dtype), self.images(dtype)
        before = images.clone()
        latents = autoencoder.encode(images)
        decoded = autoencoder.decode(latents)
        assert latents.shape == (2, spec.channels, 8, 4)
        assert decoded.shape == images.shape
        assert latents.dtype == decoded.dtype == getattr(torch, dtype)
        assert latents.isfinite().all()
        assert decoded.isfinite().all()
        assert torch.equal(images, before), "encode changed the picture it was given"

    @torch.no_grad()
    def test_draws_only_from_the_generator(self, tmp_path: Path) -> None:
        """Without a generator the mean is taken; the same seed gives the same latents; no global state moves."""
        autoencoder, images, state = self.build(tmp_path), self.images(), torch.get_rng_state()
        assert torch.equal(autoencoder.encode(images), autoencoder.encode(images))
        drawn = [autoencoder.encode(images, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1)]
        assert torch.equal(*drawn)
        assert torch.equal(state, torch.get_rng_state())

    @torch.no_grad()
    def test_treats_each_picture_by_itself(self, tmp_path: Path) -> None:
        """What stands beside a picture in the batch does not change it."""
        autoencoder, images = self.build(tmp_path), self.images()
        latents = autoencoder.encode(images)
        assert_close(latents[:1], autoencoder.encode(images[:1]))
        assert_close(autoencoder.decode(latents)[:1], autoencoder.decode(latents[:1]))

    def test_refuses_sides_that_do_not_divide(self, tmp_path: Path) -> None:
        """A picture whose side is no multiple of f is an error, never padded in silence."""
        side = self.config.spec().downscale
        if side > 1:
            autoencoder = self.build(tmp_path)
            for height, width in ((4 * side + 1, 4 * side), (4 * side, 4 * side - 1)):
                with pytest.raises(ValueError):
                    autoencoder.encode(torch.zeros(1, 3, height, width))

    def test_can_be_trained_where_it_says_so(self, tmp_path: Path) -> None:
        """An autoencoder with `posterior` and `reconstruct` is the same one as by `encode` and `decode`."""
        autoencoder = self.build(tmp_path)
        if not hasattr(autoencoder, "posterior"):
            return
        images, spec = self.images(), self.config.spec()
        mean, log_variance = autoencoder.posterior(images)
        assert mean.shape == log_variance.shape == (2, spec.channels, 8, 4)
        rebuilt = autoencoder.reconstruct(mean)  # type: ignore[attr-defined]
        assert_close(rebuilt, autoencoder.decode(autoencoder.encode(images)), 1e-3)
        assert_close(mean * autoencoder.scaling_factor, autoencoder.encode(images))  # type: ignore[attr-defined]
        module = autoencoder.module  # type: ignore[attr-defined]
        module.requires_grad_(True)
        mean, log_variance = autoencoder.posterior(images)
        rebuilt = autoencoder.reconstruct(mean)  # type: ignore[attr-defined]
        assert_trainable(module, torch.cat([rebuilt.flatten(), log_variance.flatten()]))


class BackboneContract(ComponentContract[BackboneConfig]):
    """What every backbone promises."""

    conditioning = ConditioningSpec(tokens=6, width=24, pooled=20)
    """What the backbone is built for; overridden where a component cannot take any widths."""
    latents = LatentSpec(channels=4, downscale=8)
    """Its latents, likewise."""

    def build(self, folder: Path, dtype: str = "float32") -> Backbone:
        """Make the backbone for `conditioning` and `latents`."""
        ctx = self.context(folder, dtype)
        return self.config.build(ctx, conditioning=self.conditioning, latents=self.latents)

    def inputs(self, dtype: str = "float32", rows: int | None = None) -> tuple[Tensor, Tensor, Conditioning, Tensor]:
        """Return two of everything `predict` takes: noisy [2, C, 8, 16], timesteps, conditioning, size."""
        kind, spec = getattr(torch, dtype), self.conditioning
        tokens = random_tensor(2, rows or spec.tokens, spec.width, seed=1, dtype=kind)
        text = Conditioning(tokens, random_tensor(2, spec.pooled, seed=2, dtype=kind))
        height, width = 8 * self.latents.downscale, 16 * self.latents.downscale
        size = torch.tensor([[height, width, 0, 0, height, width]] * 2)
        return random_tensor(2, self.latents.channels, 8, 16, dtype=kind), torch.tensor([3, 700]), text, size

    def test_fits_what_it_is_built_for(self) -> None:
        """`misfit` has nothing to say about the widths of this contract."""
        assert self.config.misfit(self.conditioning, self.latents) is None

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_predicts_in_the_shape_and_dtype_of_its_input(self, tmp_path: Path, dtype: str) -> None:
        """One prediction per latent, finite; the inputs are left alone."""
        backbone, (noisy, timesteps, text, size) = self.build(tmp_path, dtype), self.inputs(dtype)
        before = (noisy.clone(), timesteps.clone(), text.tokens.clone(), text.pooled.clone(), size.clone())
        found = backbone.predict(noisy, timesteps, text, size)
        assert backbone.predicts in ("epsilon", "v")
        assert found.shape == noisy.shape
        assert found.dtype == noisy.dtype
        assert found.isfinite().all()
        assert all(map(torch.equal, before, (noisy, timesteps, text.tokens, text.pooled, size)))

    @torch.no_grad()
    def test_predicts_the_same_twice_and_for_each_row_alone(self, tmp_path: Path) -> None:
        """No dropout, no batch statistics; whole and fractional timesteps of one value mean the same."""
        backbone, (noisy, timesteps, text, size) = self.build(tmp_path), self.inputs()
        found = backbone.predict(noisy, timesteps, text, size)
        assert torch.equal(found, backbone.predict(noisy, timesteps, text, size))
        assert_close(backbone.predict(noisy, timesteps.double(), text, size), found)
        alone = Conditioning(text.tokens[:1], text.pooled[:1])
        assert_close(backbone.predict(noisy[:1], timesteps[:1], alone, size[:1]), found[:1])

    @torch.no_grad()
    def test_key_bias_counts_equal_rows_and_hides_padding(self, tmp_path: Path) -> None:
        """A row with bias log 2 stands for two equal ones, and a row with -inf is as if it were absent."""
        backbone, (noisy, timesteps, text, size) = self.build(tmp_path), self.inputs(rows=3)
        plain = Conditioning(text.tokens[:, [0, 0, 1]], text.pooled)
        bias = torch.tensor([[math.log(2), 0.0, -math.inf]] * 2)
        counted = Conditioning(text.tokens[:, [0, 1, 2]], text.pooled, bias)
        wanted = backbone.predict(noisy, timesteps, plain, size)
        assert_close(backbone.predict(noisy, timesteps, counted, size), wanted)

    def test_gradients_reach_every_weight(self, tmp_path: Path) -> None:
        """Training moves all of it, and the noisy latent's gradient is there for adapters; unless it never trains."""
        backbone, (noisy, timesteps, text, size) = self.build(tmp_path), self.inputs()
        noisy.requires_grad_(True)
        if not self.config.trains:
            assert not backbone.predict(noisy, timesteps, text, size).requires_grad
            return
        backbone.module.requires_grad_(True)
        assert_trainable(backbone.module, backbone.predict(noisy, timesteps, text, size))
        assert noisy.grad is not None


class AdapterContract(ComponentContract[AdapterConfig]):
    """What every adapter promises."""

    def backbone(self, folder: Path) -> tuple[Backbone, BackboneContract]:
        """Return a backbone to attach to and the contract that made it: the first installed one unless overridden."""
        made = BackboneContract()
        made.config = next(discover().of_kind("backbone")).tiny()  # type: ignore[assignment]
        return made.build(folder), made

    @torch.no_grad()
    def test_attached_backbone_is_still_a_backbone(self, tmp_path: Path) -> None:
        """It predicts the same quantity in the same shape and dtype, twice alike."""
        backbone, contract = self.backbone(tmp_path)
        predicts, inputs = backbone.predicts, contract.inputs()
        attached = self.config.build(self.context(tmp_path)).attach(backbone)
        found = attached.predict(*inputs)
        assert attached.predicts == predicts
        assert found.shape == inputs[0].shape
        assert found.dtype == inputs[0].dtype
        assert found.isfinite().all()
        assert torch.equal(found, attached.predict(*inputs))
