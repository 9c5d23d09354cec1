"""Drawing pictures: the sampling graph and the object that runs it for prompts and seeds."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from kolors_kernel.errors import RecipeError, RunError
from kolors_kernel.graph import Graph, step
from kolors_kernel.values import Conditioning
from kolors_recipes.steps import encode_prompts

if TYPE_CHECKING:
    from typing import TypeAlias

    from torch import Tensor

    from kolors_kernel.component import BuildContext
    from kolors_kernel.protocols import Autoencoder, Backbone, Denoise, Guidance, NoiseSchedule, Solver
    from kolors_kernel.values import Images, Latents, Noise, Random, Sizes
    from kolors_recipes.config import DrawingRecipe, ModelRecipe

    Tick: TypeAlias = Callable[[], None]


@step(writes="latents")
def denoise(
    noise: Noise,
    conditioning: Conditioning,
    size: Sizes,
    random: Random,
    tick: Tick,
    backbone: Backbone,
    schedule: NoiseSchedule,
    solver: Solver,
    guidance: Guidance,
) -> Latents:
    """Carry noise to latents under guidance; `tick` is called after every evaluation of the backbone."""
    epsilon = _denoiser(backbone, schedule, conditioning, size)

    def counted(noisy: Tensor, timesteps: Tensor) -> Tensor:
        found = epsilon(noisy, timesteps)
        tick()
        return found

    return solver.solve(guidance(counted), noise, schedule, generator=random)


@step(writes="images")
def decode(latents: Latents, autoencoder: Autoencoder) -> Images:
    """Decode latents to pictures."""
    return autoencoder.decode(latents)


def drawing_graph() -> Graph:
    """Return the sampling graph: captions and noise in, pictures out."""
    return Graph(
        (encode_prompts, denoise, decode),
        inputs=("captions", "noise", "size", "random", "tick"),
        outputs=("images",),
        parts=("text_encoder", "autoencoder", "backbone", "schedule", "solver", "guidance"),
    )


def _denoiser(backbone: Backbone, schedule: NoiseSchedule, conditioning: Conditioning, size: Tensor) -> Denoise:
    """Return a function that gives epsilon, whatever the backbone predicts."""

    def epsilon(noisy: Tensor, timesteps: Tensor) -> Tensor:
        prediction = backbone.predict(noisy, timesteps, conditioning, size)
        if backbone.predicts == "epsilon":
            return prediction
        signal, scale = (c.to(noisy).view(-1, 1, 1, 1) for c in schedule.coefficients(timesteps))
        return signal * prediction + scale * noisy

    return epsilon


def build_model(recipe: ModelRecipe, ctx: BuildContext, needs: Container[str], *, seed: int) -> dict[str, Any]:
    """Build those of the three parts that are needed, the adapters around the backbone."""
    configs = {name: getattr(recipe, name) for name in ("text_encoder", "autoencoder", "backbone") if name in needs}
    inputs = {"conditioning": recipe.text_encoder.spec(), "latents": recipe.autoencoder.spec()}
    parts = build_parts(configs, ctx, seed=seed, backbone=inputs)
    if "backbone" in parts:
        for adapter in recipe.adapters:
            parts["backbone"] = adapter.build(ctx).attach(parts["backbone"])
    return parts


def build_parts(
    configs: Mapping[str, Any], ctx: BuildContext, *, seed: int, **inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Build parts by name, each with its `inputs`; random weights that torch draws come from `seed`, part by part."""
    parts: dict[str, Any] = {}
    _require_device(ctx.device)
    with torch.random.fork_rng():
        for name, config in configs.items():
            torch.manual_seed(seed)
            parts[name] = config.build(ctx, **inputs.get(name, {}))
    return parts


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise RecipeError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error


class Drawer:
    """Draws pictures from prompts with built parts."""

    def __init__(
        self, parts: Mapping[str, Any], recipe: ModelRecipe, ctx: BuildContext, *, negative_prompt: str = ""
    ) -> None:
        self.graph = drawing_graph()
        self.parts, self._negative = parts, negative_prompt
        self._latents = recipe.autoencoder.spec()
        self._device, self._dtype = torch.device(ctx.device), getattr(torch, ctx.dtype)

    @classmethod
    def assemble(cls, recipe: DrawingRecipe, ctx: BuildContext) -> Drawer:
        """Build every part of a recipe that draws."""
        parts = build_model(recipe, ctx, drawing_graph().needs, seed=0)
        for name in ("schedule", "solver", "guidance"):
            parts[name] = getattr(recipe, name).build(ctx)
        return cls(parts, recipe, ctx, negative_prompt=recipe.negative_prompt)

    @torch.no_grad()
    def draw(
        self, prompts: Sequence[str], *, seeds: Sequence[int], height: int, width: int, tick: Tick = lambda: None
    ) -> Tensor:
        """Return one picture a prompt, [B, 3, H, W] float32 in [-1, 1]; the noise of each comes from its own seed.

        Raises RunError when a picture is not a number.
        """
        shape = (self._latents.channels, height // self._latents.downscale, width // self._latents.downscale)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
        doubled = self.parts["guidance"].uses_negative
        rows = len(prompts) * (2 if doubled else 1)
        (images,) = self.graph.run(
            captions=[self._negative] * len(prompts) + list(prompts) if doubled else list(prompts),
            noise=noise.to(self._device, self._dtype),
            size=torch.tensor([[height, width, 0, 0, height, width]] * rows, device=self._device),
            random=generators[0],
            tick=tick,
            **self.parts,
        )
        if images.isnan().any():
            raise RunError("a picture came out as not a number; the weights may be damaged, or dtype: float32 may help")
        return torch.as_tensor(images).float().clamp(-1, 1).cpu()
