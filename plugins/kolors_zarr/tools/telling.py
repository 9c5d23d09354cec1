"""What is in a store, in lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kolors_zarr.tools.census import Census, Tag

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def lines(census: Census) -> Iterator[str]:
    """Yield a census as text for a terminal."""
    shards = number_of(census.shards, "shard")
    yield f"{census.store}: {number_of(census.samples, 'sample')} in {shards} of up to {census.shard_rows}"
    yield from _buckets(census)
    for example, count in census.no_bucket.items():
        yield f"  {count:,} have none, as {example}"
    yield "captions"
    yield from _table({**census.captions, "none at all": census.without_caption}, of=census.samples)
    yield "a caption by language and by origin"
    yield from _table({**census.languages, **census.origins}, of=census.samples)
    for name, tag in census.tags.items():
        yield _tag(name, tag)
    if census.refused:
        yield f"refused inputs: {census.refused:,}"
        yield from (f"  {each.inputs:,} as '{each.example}': {each.reason}" for each in census.reasons)
    yield f"bytes: {size(sum(census.bytes.values()))}"
    for name, count in census.bytes.items():
        yield f"  {name:<24} {size(count):>10}  {size(count / census.samples):>10} a sample"


def size(count: float) -> str:
    """Return a number of bytes in the unit that suits it, as 12.3 MB."""
    for unit in _UNITS:
        if count < 999.95 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def number_of(count: int, word: str) -> str:
    """Return a number of things in words: 1 sample, 2,000 samples."""
    return f"{count:,} {word}{'s' * (count != 1)}"


def _table(counts: Mapping[str, int], *, of: int) -> Iterator[str]:
    for name, count in counts.items():
        yield f"  {name:<24} {count:>13,}  {count / of:7.2%}"


def _tag(name: str, tag: Tag) -> str:
    rest = {f"{tag.values_not_shown:,} other values": tag.others, "without it": tag.lacking}
    shown = {**tag.values, **{words: count for words, count in rest.items() if count}}
    return f"tag {name}: {', '.join(f'{value} ({count:,})' for value, count in shown.items())}"


def _buckets(census: Census) -> Iterator[str]:
    epoch, every = census.epoch, census.epoch.buckets
    ranks, steps = number_of(epoch.world, "rank"), number_of(epoch.steps, "step")
    yield f"an epoch in batches of {epoch.batch} on {ranks}: {steps}, {epoch.full_steps:,} of them full"
    yield f"  {'height x width':<24} {'samples':>13} {'full batches':>22} {'left over':>10} {'padded slots':>13}"
    together = {column: sum(row[column] for row in every.values()) for column in next(iter(every.values()))}
    for name, row in [*every.items(), ("all", together)]:
        yield (
            f"  {name:<24} {row['samples']:>13,}  {row['samples'] / census.samples:7.2%} {row['full_batches']:>13,} "
            f"{row['left_over']:>10,} {row['padded']:>13,}"
        )
