"""The job of the precompute recipe: run the front of the training graph once and store what it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import torch

from kolors_kernel.errors import RecipeError
from kolors_kernel.graph import Graph
from kolors_kernel.values import NO_CAPTION, Batch, Conditioning, Part, Sample
from kolors_recipes.batches import to_images
from kolors_recipes.parts import build_parts
from kolors_recipes.progress import Progress
from kolors_recipes.steps import TRAINING

if TYPE_CHECKING:
    from torch import Tensor

    from kolors_kernel.component import BuildContext
    from kolors_kernel.protocols import SupportsParts
    from kolors_recipes.config import Precompute


def stored_graph(outputs: Sequence[str]) -> Graph:
    """Return the part of the training graph that makes `outputs` from pictures and captions."""
    parts = ("text_encoder", "autoencoder")
    return Graph(TRAINING, inputs=("images", "captions"), outputs=outputs, parts=parts)


class PrecomputeJob:
    """Has every sample of a source encoded once, each of its captions and the empty one, a part at a time.

    Raises RecipeError for a source that has no stored order.
    """

    def __init__(self, recipe: Precompute, ctx: BuildContext) -> None:
        self._recipe, self._ctx = recipe, ctx
        self._source, self._sink = _parted(recipe, ctx), recipe.sink.build(ctx)
        self._workers = recipe.workers.build(ctx)
        self.graphs: Mapping[str, Graph] = recipe.graphs()

    def run(self) -> Mapping[str, float]:
        """Store what is missing and publish everything; return the number of samples."""
        parts = self._source.parts(self._sink.part_size)
        missing = self._sink.missing(parts)
        total = sum(len(part.rows) for part in parts)
        done = total - sum(len(part.rows) for part in missing)
        with Progress("encoding", total, done=done) as progress:
            for part, _ in self._workers.map(partial(encoder, self._recipe, self._ctx), missing):
                progress.advance(by=len(part.rows))
        return {"samples": self._sink.publish(parts)}


def encoder(recipe: Precompute, ctx: BuildContext) -> Callable[[Part], None]:
    """Build source, models and sink, once in each worker, and return what encodes and stores a part with them."""
    graph = stored_graph(recipe.outputs)
    models = build_parts({name: getattr(recipe, name) for name in graph.needs}, ctx, seed=0)
    source, sink = _parted(recipe, ctx), recipe.sink.build(ctx)
    device, dtype = torch.device(ctx.device), getattr(torch, recipe.keep)

    def encode(batch: Batch) -> Iterator[Sample]:
        texts = [(row, key) for row, record in enumerate(batch.records) for key in _keys(record.captions)]
        captions = [batch.records[row].captions.get(key, "") for row, key in texts]
        images = None if batch.images is None else to_images(batch.images, device)
        made = dict(zip(graph.outputs, graph.run(images=images, captions=captions, **models), strict=True))
        latents: Tensor | None = made.get("latents")
        conditioning: Conditioning | None = made.get("conditioning")
        for row, record in enumerate(batch.records):
            sample = Sample(record)
            if latents is not None:
                size = cast("tuple[int, int, int, int, int, int]", tuple(map(int, batch.size[row])))
                sample = replace(sample, latents=latents[row].to("cpu", dtype), size=size)
            if conditioning is not None:
                own = {key: _row(conditioning, i, dtype) for i, (at, key) in enumerate(texts) if at == row}
                sample = replace(sample, conditioning=own)
            yield sample

    @torch.no_grad()
    def store(part: Part) -> None:
        sink.write(part, (sample for batch in source.read(part) for sample in encode(batch)))

    return store


def _parted(recipe: Precompute, ctx: BuildContext) -> SupportsParts:
    source = recipe.data.build(ctx)
    if not hasattr(source, "parts"):
        raise RecipeError(f"data source '{recipe.data.type}' cannot be precomputed: it cannot be read in parts")
    return cast("SupportsParts", source)


def _keys(captions: Mapping[str, str]) -> list[str]:
    return [*(key for key, text in captions.items() if text), NO_CAPTION]


def _row(conditioning: Conditioning, index: int, dtype: torch.dtype) -> Conditioning:
    bias = conditioning.key_bias
    return Conditioning(
        tokens=conditioning.tokens[index : index + 1].to("cpu", dtype),
        pooled=conditioning.pooled[index : index + 1].to("cpu", dtype),
        key_bias=None if bias is None else bias[index : index + 1].cpu(),
    )
