"""The job of the recipe import_samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from kolors_kernel.errors import DataError
from kolors_kernel.graph import Graph
from kolors_kernel.values import Part, Sample
from kolors_zarr.collections.inputs import Collection, Input
from kolors_zarr.importing import steps
from kolors_zarr.importing.progress import counted
from kolors_zarr.importing.scan import Piece, fingerprint, scan
from kolors_zarr.importing.steps import Verdicts
from kolors_zarr.store.layout import MANIFEST, REFUSED, group_name
from kolors_zarr.store.places import Folder, exists, open_place
from kolors_zarr.store.reading import Store
from kolors_zarr.store.refused import Refused, refused_of
from kolors_zarr.store.sink import ZarrStoreSink

if TYPE_CHECKING:
    from kolors_kernel.component import BuildContext
    from kolors_zarr.recipes_config import ImportSamples

_SHOWN = 10
"""How many refused inputs the log names; the store lists all."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What one worker does in one go: a part, and the inputs that its rows are."""

    part: Part
    inputs: Sequence[Input]

    def __str__(self) -> str:
        return f"part '{self.part.name}'"


class ImportJob:
    """Lists a collection, scans it, and lets workers write one shard after the other; then the store is published."""

    def __init__(self, recipe: ImportSamples, ctx: BuildContext) -> None:
        self._recipe, self._ctx = recipe, ctx
        self.graphs = graphs_of(recipe)

    def run(self) -> Mapping[str, float]:
        """Import all that can be used; return the number of samples, of refused inputs, and of samples without caption.

        Raises DataError when there is a store, one begun from other inputs, or nothing to import; RunError when the
        store cannot be written.
        """
        sink, workers = sink_of(self._recipe, self._ctx), self._recipe.workers.build(self._ctx)
        if exists(sink.place, MANIFEST):
            raise DataError(f"there is already a store at {sink.place.url}; it is never overwritten, choose a new path")
        inputs = listed(self._recipe.data.build(self._ctx))
        # Whatever changes the samples changes the parts' names: what was begun from others is not gone on with.
        settings = self._recipe.model_dump(mode="json", include={"data", "buckets", "keep", "without_caption"})
        name = fingerprint(settings, inputs)
        scans = Folder(self._ctx.out / "scan")
        make = partial(scanner, self._recipe, self._ctx)
        verdicts = scan(inputs, workers, make=make, kept=Folder(scans.path / name))
        refused = [Refused(each.name, why) for each, why in zip(inputs, verdicts, strict=True) if isinstance(why, str)]
        parts = parts_of(verdicts, most=self._recipe.shard, suffix=name)
        if not parts:
            first = "; ".join(f"{each.input}: {each.reason}" for each in refused[:3])
            raise DataError(
                f"there are no samples to store: all {len(refused)} inputs were refused, the first are {first}"
            )
        tasks = [Task(part, [inputs[row] for row in part.rows]) for part in sink.missing(parts)]
        if len(tasks) < len(parts):
            logger.info("%d of %d parts were written before", len(parts) - len(tasks), len(parts))
        done = workers.map(partial(writer, self._recipe, self._ctx), tasks)
        for _ in counted(done, len(tasks), "wrote parts"):
            pass
        sink.publish(parts, refused=refused)
        scans.clear("")
        return report(Store(sink.place))


def graphs_of(recipe: ImportSamples) -> Mapping[str, Graph]:
    """Return what is done with a piece of the list, and with a single input."""
    measure = {"keep": steps.measure, "refuse": steps.measure_with_captions}[recipe.without_caption]
    scanning, writing = [measure, steps.assign], [steps.read, steps.describe, steps.keep, steps.bring]
    return {
        "scan": Graph(scanning, inputs=["inputs"], outputs=["buckets"], parts=["collection", "bucketing"]),
        "write": Graph(writing, inputs=["each", "bucket"], outputs=[recipe.keep], parts=["collection"]),
    }


def sink_of(recipe: ImportSamples, ctx: BuildContext) -> ZarrStoreSink:
    """Return where the recipe's samples go."""
    place = open_place(recipe.path, below=ctx.out)
    sizes = recipe.buckets.sizes() if recipe.keep == "encoded" else ()
    return ZarrStoreSink(place, shard_rows=recipe.shard, buckets=sizes)


def listed(collection: Collection) -> list[Input]:
    """Return the inputs of a collection; of several with one id all but the first have a problem."""
    names, found = set[str](), list[Input]()
    for each in collection.inputs():
        try:
            each.name.encode()
        except UnicodeEncodeError:
            shown = each.name.encode(errors="backslashreplace").decode()
            each = each._replace(name=shown, problem="its name is not UTF-8")
        if not each.problem and each.name in names:
            each = each._replace(problem="an input before it has the same id")
        names.add(each.name)
        found.append(each)
    if not found:
        raise DataError("the collection is empty: there is nothing to import")
    return found


def parts_of(verdicts: Verdicts, *, most: int, suffix: str) -> list[Part]:
    """Return the inputs that have a bucket in parts of at most `most`, each of one bucket and in the list's order.

    The parts follow each other as their first inputs do, so that what a worker reads lies close together.
    """
    rows: dict[tuple[int, int], list[int]] = {}
    for row, bucket in enumerate(verdicts):
        if not isinstance(bucket, str):
            rows.setdefault(bucket, []).append(row)
    parts = [
        Part(f"{group_name(bucket)}-{number}-{suffix}", bucket, own[start : start + most])
        for bucket, own in rows.items()
        for number, start in enumerate(range(0, len(own), most))
    ]
    return sorted(parts, key=lambda part: part.rows[0])


def scanner(recipe: ImportSamples, ctx: BuildContext) -> Callable[[Piece], Verdicts]:
    """Return what a worker does with a piece of the list."""
    graph, collection, bucketing = graphs_of(recipe)["scan"], recipe.data.build(ctx), recipe.buckets.build(ctx)

    def work(piece: Piece) -> Verdicts:
        (verdicts,) = graph.run(inputs=piece.inputs, collection=collection, bucketing=bucketing)
        return list(verdicts)

    return work


def writer(recipe: ImportSamples, ctx: BuildContext) -> Callable[[Task], None]:
    """Return what a worker does with a part."""
    graph, collection, sink = graphs_of(recipe)["write"], recipe.data.build(ctx), sink_of(recipe, ctx)

    def samples(task: Task) -> Iterator[Sample | Refused]:
        for each in task.inputs:
            try:
                yield from graph.run(each=each, bucket=task.part.size, collection=collection)
            except DataError as error:
                yield Refused(each.name, str(error))

    return lambda task: sink.write(task.part, samples(task))


def report(store: Store) -> Mapping[str, float]:
    """Log what is in a new store, and the first of what is not; return how many of each there are."""
    manifest, present = store.manifest, store.column("captions")
    logger.info("samples by bucket: %s", _counts({group.name: group.samples for group in manifest.groups}))
    keys = {key: int((present >> bit & 1).sum()) for bit, key in enumerate(manifest.captions)}
    bare = int((present == 0).sum())
    logger.info("samples by caption: %s", _counts({**keys, "none at all": bare}))
    if manifest.refused:
        logger.warning("%d inputs were refused, listed in %s/%s:", manifest.refused, store.place.url, REFUSED)
        for each in refused_of(store.place, manifest)[:_SHOWN]:
            logger.warning("  %s: %s", each.input, each.reason)
    return {"samples": store.samples, "refused": manifest.refused, "without_caption": bare}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
