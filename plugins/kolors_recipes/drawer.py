"""The object that draws pictures for prompts and seeds, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from kolors_kernel.errors import RunError
from kolors_recipes.conditioning import by_prompt, together
from kolors_recipes.drawing import Source, phase_graphs
from kolors_recipes.progress import Progress
from kolors_weights.precision import exact_onednn

if TYPE_CHECKING:
    from torch import Tensor

    from kolors_kernel.component import BuildContext
    from kolors_kernel.values import Conditioning
    from kolors_recipes.config import DrawingRecipe, ModelRecipe
    from kolors_recipes.measuring import Meter
    from kolors_recipes.parts import DrawingParts, Lend

ENCODED = 32
"""Prompts encoded at a time where all are encoded before the first picture: each time, weights may be read anew."""


@dataclass(frozen=True)
class Request:
    """One picture to draw: its prompt, and the seed of its noise."""

    prompt: str
    seed: int


class Drawer:
    """Draws pictures with the parts that `lend` holds for each phase.

    `evaluations` is how often a picture asks the backbone, if that is known. With a `meter` the phases are measured
    and their progress is shown. `float32_products` says which library computed them on a CPU.
    """

    float32_products = "nothing was computed"

    def __init__(
        self,
        lend: Lend,
        recipe: ModelRecipe,
        ctx: BuildContext,
        *,
        negative_prompt: str = "",
        source: Source | None = None,
        evaluations: int | None = None,
        meter: Meter | None = None,
    ) -> None:
        self._source = source or Source()
        self.graphs = phase_graphs(self._source.steps)
        self._lend, self._negative, self._evaluations, self._meter = lend, negative_prompt, evaluations, meter
        self._latents = recipe.autoencoder.spec()
        self._device, self._dtype = torch.device(ctx.device), getattr(torch, ctx.dtype)

    @classmethod
    def assemble(
        cls, recipe: DrawingRecipe, ctx: BuildContext, parts: DrawingParts, source: Source | None = None
    ) -> Drawer:
        """Return what draws by a recipe, with its parts."""
        return cls(
            parts.lend,
            recipe,
            ctx,
            negative_prompt=recipe.negative_prompt,
            source=source,
            evaluations=parts.evaluations,
            meter=parts.meter,
        )

    def draw(self, prompts: Sequence[str], *, seeds: Sequence[int], height: int, width: int) -> Tensor:
        """Return one picture a prompt, [B, 3, H, W] float32 in [-1, 1]; the noise of each comes from its own seed.

        Raises RunError when a picture is not a number.
        """
        requests = [Request(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        ((_, images),) = self.pictures(requests, batch=len(requests), height=height, width=width)
        return images

    def pictures(
        self,
        requests: Sequence[Request],
        *,
        batch: int,
        height: int,
        width: int,
        hold: Literal["all", "one"] = "all",
    ) -> Iterator[tuple[Sequence[Request], Tensor]]:
        """Yield batches of requests with their pictures, [B, 3, H, W] float32 in [-1, 1].

        Holding `all` parts, each batch is finished before the next begins; holding `one`, all batches go through a
        phase before the next phase begins. Raises RunError when a picture is not a number.
        """
        batches = [requests[start : start + batch] for start in range(0, len(requests), batch)]
        if not batches:
            return
        size = torch.tensor([height, width, 0, 0, height, width], device=self._device)
        ports = self._encode_picture()
        texts: dict[str, Conditioning] = {}
        for group in [[each] for each in batches] if hold == "all" else [batches]:
            texts = {text: found for text, found in texts.items() if text == self._negative}
            self._encode(group, texts)
            found = self._denoise(group, texts, size, ports)
            with self._lend(self.graphs["decode"]) as parts:
                for each in group:
                    yield each, self._decode(found.pop(0), parts)

    @torch.no_grad()
    def _encode_picture(self) -> dict[str, Tensor]:
        """Return the latents of the picture drawn from, by port; nothing where there is none."""
        graph = self.graphs.get("encode_picture")
        if graph is None:
            return {}
        with self._lend(graph) as parts, self._phase("encode picture", 1):
            return dict(zip(graph.outputs, graph.run(**self._source.given, **parts), strict=True))

    @torch.no_grad()
    def _encode(self, group: Sequence[Sequence[Request]], texts: dict[str, Conditioning]) -> None:
        """Add the conditioning of every text that is needed and not there: each once, prompts and negative alike."""
        graph = self.graphs["encode"]
        with self._lend(graph) as parts:
            negative = [self._negative] if parts["guidance"].uses_negative else []
            wanted = dict.fromkeys([*negative, *(request.prompt for batch in group for request in batch)])
            missing = [text for text in wanted if text not in texts]
            with self._phase("encode", len(missing)) as progress:
                for start in range(0, len(missing), ENCODED):
                    some = missing[start : start + ENCODED]
                    (conditioning,) = graph.run(captions=some, **parts)
                    texts.update(zip(some, by_prompt(conditioning), strict=True))
                    progress.advance(by=len(some))

    @torch.no_grad()
    def _denoise(
        self,
        group: Sequence[Sequence[Request]],
        texts: Mapping[str, Conditioning],
        size: Tensor,
        ports: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """Return the latents of each batch."""
        graph, found = self.graphs["denoise"], list[Any]()
        shape = (self._latents.channels, *(int(side) // self._latents.downscale for side in size[:2]))
        total = self._evaluations and self._evaluations * len(group)
        with self._lend(graph) as parts, self._phase("denoise", total) as progress:
            for batch in group:
                generators = [torch.Generator().manual_seed(request.seed) for request in batch]
                noise = torch.stack([torch.randn(shape, generator=each) for each in generators])
                negative = [self._negative] * len(batch) if parts["guidance"].uses_negative else []
                rows = [texts[text] for text in [*negative, *(request.prompt for request in batch)]]
                found += graph.run(
                    noise=noise.to(self._device, self._dtype),
                    conditioning=together(rows),
                    size=size.expand(len(rows), -1),
                    random=generators[0],
                    tick=progress.advance,
                    **ports,
                    **self._source.given,
                    **parts,
                )
        return found

    @torch.no_grad()
    def _decode(self, latents: Tensor, parts: Mapping[str, Any]) -> Tensor:
        with self._phase("decode", len(latents)) as progress:
            (images,) = self.graphs["decode"].run(latents=latents, **self._source.given, **parts)
            progress.advance(by=len(latents))
        if images.isnan().any():
            raise RunError("a picture came out as not a number; the weights may be damaged, or dtype: float32 may help")
        return torch.as_tensor(images).float().clamp(-1, 1).cpu()

    @contextmanager
    def _phase(self, name: str, total: int | None) -> Iterator[Progress]:
        measured = nullcontext() if self._meter is None else self._meter.phase(name)
        shown = Progress(name, total, silent=self._meter is None, passing=True)
        with exact_onednn() as self.float32_products, measured, shown as progress:
            yield progress
