"""Classifier-free guidance against its formula and against diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg
from kolors_solvers.config import ClassifierFree
from kolors_solvers.guidance import ClassifierFreeGuidance
from pydantic import ValidationError
from torch import Tensor

from kolors_kernel import BuildContext
from kolors_kernel.kinds import GuidanceConfig


class Network:
    """Answers rows of the first half as the negative prompt would, of the second as the prompt."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor]] = []

    def negative(self, x: Tensor) -> Tensor:
        return torch.sin(2 * x) + 0.3

    def positive(self, x: Tensor) -> Tensor:
        return torch.cos(x) * x

    def __call__(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.calls.append((x, timesteps))
        first, second = x.chunk(2)
        return torch.cat([self.negative(first), self.positive(second)])


def latents(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 4, 5, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_the_result_lies_scale_times_the_way_from_negative_to_positive() -> None:
    network, x = Network(), latents()
    found = ClassifierFree(scale=6.5).build(BuildContext())(network)(x, torch.tensor([5.0, 6.0, 7.0]))
    negative, positive = network.negative(x), network.positive(x)
    torch.testing.assert_close(found, -5.5 * negative + 6.5 * positive, rtol=1e-12, atol=1e-12)


def test_both_prompts_are_asked_in_one_call_negative_first() -> None:
    network, x, timesteps = Network(), latents(), torch.tensor([5.0, 6.0, 7.0])
    guidance = ClassifierFree().build(BuildContext())
    assert guidance.uses_negative
    guidance(network)(x, timesteps)
    [(asked, times)] = network.calls
    assert torch.equal(asked, torch.cat([x, x]))
    assert torch.equal(times, torch.cat([timesteps, timesteps]))


def test_scale_one_is_the_prompt_alone() -> None:
    guidance = ClassifierFree(scale=1, rescale=0.7).build(BuildContext())
    assert not guidance.uses_negative
    x, network = latents(), Network()
    found = guidance(lambda asked, t: network.positive(asked))(x, torch.zeros(3))
    assert torch.equal(found, network.positive(x))


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rescaling_agrees_with_diffusers(rescale: float, dtype: torch.dtype) -> None:
    network, x = Network(), latents(dtype)
    found = ClassifierFree(scale=7.5, rescale=rescale).build(BuildContext())(network)(x, torch.zeros(3))
    negative, positive = network.negative(x), network.positive(x)
    steered = negative + 7.5 * (positive - negative)
    wanted = rescale_noise_cfg(steered, positive, guidance_rescale=rescale)
    assert float((found - wanted).norm() / wanted.norm()) < {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
    assert found.dtype == dtype


def test_full_rescaling_gives_every_sample_the_spread_of_its_prompt() -> None:
    network, x = Network(), latents()
    found = ClassifierFree(scale=9, rescale=1).build(BuildContext())(network)(x, torch.zeros(3))
    spread = network.positive(x).flatten(1).std(1)
    torch.testing.assert_close(found.flatten(1).std(1), spread, rtol=1e-12, atol=0)


def test_samples_of_a_batch_do_not_touch() -> None:
    network, x = Network(), latents()
    guided = ClassifierFree(scale=4, rescale=0.5).build(BuildContext())(network)
    whole = guided(x, torch.zeros(3))
    for row in range(3):
        torch.testing.assert_close(guided(x[row : row + 1], torch.zeros(1)), whole[row : row + 1])


@pytest.mark.parametrize(("settings", "message"), [({"scale": 0.5}, "greater than or equal"), ({"rescale": 2}, "less")])
def test_wrong_settings_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GuidanceConfig.model_validate({"type": "classifier_free", **settings})


def test_a_scale_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale 0\.5 must not be below 1"):
        ClassifierFreeGuidance(scale=0.5, rescale=0.0)
