"""The job of the precompute recipe: run the front of the training graph once and store what it makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from kolors_kernel.errors import RecipeError
from kolors_kernel.graph import Graph
from kolors_kernel.values import NO_CAPTION, Batch, Conditioning, Sample
from kolors_recipes.drawing import build_parts
from kolors_recipes.progress import Progress
from kolors_recipes.steps import TRAINING

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_kernel.protocols import DataSink, SupportsInOrder
    from kolors_recipes.config import Precompute


def stored_graph(outputs: Sequence[str]) -> Graph:
    """Return the part of the training graph that makes `outputs` from pictures and captions."""
    parts = ("text_encoder", "autoencoder")
    return Graph(TRAINING, inputs=("images", "captions"), outputs=outputs, parts=parts)


class PrecomputeJob:
    """Encodes every sample of a source once, each of its captions and the empty one, and hands it to a sink."""

    def __init__(
        self, graph: Graph, parts: Mapping[str, Any], source: SupportsInOrder, sink: DataSink, device: torch.device
    ) -> None:
        self._graph, self._parts, self._source, self._sink, self._device = graph, parts, source, sink, device
        self.graphs: Mapping[str, Graph] = {"store": graph}

    @classmethod
    def assemble(cls, recipe: Precompute, ctx: BuildContext) -> PrecomputeJob:
        """Build the parts the outputs need. Raises RecipeError for a source that has no stored order."""
        graph = stored_graph(recipe.outputs)
        parts = build_parts({name: getattr(recipe, name) for name in graph.needs}, ctx, seed=0)
        source = recipe.data.build(ctx)
        if not hasattr(source, "in_order"):
            raise RecipeError(f"data source '{recipe.data.type}' cannot be precomputed: it has no stored order")
        return cls(graph, parts, cast("SupportsInOrder", source), recipe.sink.build(ctx), torch.device(ctx.device))

    def run(self) -> Mapping[str, float]:
        """Store everything; return the number of samples."""
        return {"samples": self._sink.write(self._samples())}

    @torch.no_grad()
    def _samples(self) -> Iterator[Sample]:
        with Progress("encoding", None) as progress:
            for batch in self._source.in_order():
                yield from self._encode(batch)
                progress.advance(by=len(batch.records))

    def _encode(self, batch: Batch) -> Iterator[Sample]:
        keys = [[*(k for k, text in record.captions.items() if text), NO_CAPTION] for record in batch.records]
        texts = [
            "" if key == NO_CAPTION else record.captions[key]
            for record, own in zip(batch.records, keys, strict=True)
            for key in own
        ]
        images = None if batch.images is None else batch.images.to(self._device)
        made = dict(
            zip(self._graph.outputs, self._graph.run(images=images, captions=texts, **self._parts), strict=True)
        )
        sizes = [cast("tuple[int, int, int, int, int, int]", tuple(map(int, each))) for each in batch.size]
        row = 0
        for index, (record, own) in enumerate(zip(batch.records, keys, strict=True)):
            sample = Sample(record)
            if "latents" in made:
                sample = replace(sample, latents=made["latents"][index].float().cpu(), size=sizes[index])
            if "conditioning" in made:
                rows = {key: _row(made["conditioning"], row + i) for i, key in enumerate(own)}
                sample = replace(sample, conditioning=rows)
            row += len(own)
            yield sample


def _row(conditioning: Conditioning, index: int) -> Conditioning:
    bias = conditioning.key_bias
    return Conditioning(
        tokens=conditioning.tokens[index : index + 1].float().cpu(),
        pooled=conditioning.pooled[index : index + 1].float().cpu(),
        key_bias=None if bias is None else bias[index : index + 1].cpu(),
    )
