"""Precomputing by parts: by several processes, through kills, and as a stranger's source or sink would have it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kolors_recipes.parts import build_parts
from kolors_zarr.config import ZarrSource
from kolors_zarr.store.writing import write_store
from PIL import Image

from kolors_kernel import BuildContext, load_recipe
from kolors_kernel.cli import main
from kolors_kernel.errors import RecipeError
from kolors_kernel.values import NO_CAPTION, Sample, SampleRecord

Write = Callable[..., Path]
KILLED = Path(__file__).with_name("run_until_killed.py")


def recipe(tiny: SimpleNamespace, **settings: Any) -> dict[str, Any]:
    sink = {"type": "zarr", "path": "stored.zarr", "shard": 32}
    parts = {"text_encoder": tiny.text_encoder, "autoencoder": tiny.autoencoder}
    return {"type": "precompute", **parts, "data": tiny.fruit(), "sink": sink} | settings


def objects(store: Path) -> dict[str, bytes]:
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in store.rglob("*") if file.is_file()}


@pytest.fixture
def kolors(tmp_path: Path) -> Callable[..., int]:
    """Run a recipe by the command, killed after it wrote so many objects if a number is given."""

    def run(path: Path, out: Path, *settings: str, after: int | None = None) -> int:
        words = ["run", str(path), "--out", str(out), *(word for each in settings for word in ("--set", each))]
        if after is None:
            return main(words)
        command = [sys.executable, str(KILLED), str(after), *words]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300).returncode

    return run


@pytest.mark.slow
def test_a_killed_run_goes_on_and_several_processes_store_the_same(
    tiny: SimpleNamespace, write: Write, kolors: Callable[..., int], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    path = write(recipe(tiny))
    assert kolors(path, tmp_path / "whole") == 0
    whole = objects(tmp_path / "whole/stored.zarr")
    assert kolors(path, tmp_path / "killed", after=30) == -signal.SIGKILL
    begun = objects(tmp_path / "killed/stored.zarr")
    assert "manifest.json" not in begun
    rows = [key for key in begun if key.startswith("parts/") and "-" in key and key.endswith(".json")]
    assert 0 < len(rows) < 6
    assert kolors(path, tmp_path / "killed") == 0
    assert objects(tmp_path / "killed/stored.zarr") == whole
    assert kolors(path, tmp_path / "two", "workers.count=2") == 0
    assert objects(tmp_path / "two/stored.zarr") == whole


def picture(i: int, size: tuple[int, int]) -> Sample:
    file = BytesIO()
    pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return Sample(
        SampleRecord(f"p{i}", size, {"zh_original": f"第{i}张", "en_synthetic": f"number {i}"}), file.getvalue()
    )


@pytest.mark.slow
def test_every_bucket_is_stored_at_its_own_size_with_the_text_of_every_caption(
    tiny: SimpleNamespace, write: Write, kolors: Callable[..., int], tmp_path: Path
) -> None:
    write_store(tmp_path / "pictures", (picture(i, ((40, 40), (30, 70))[i % 2]) for i in range(9)))
    data = {"type": "zarr", "path": str(tmp_path / "pictures"), "batch": 2, "crop": "centre"}
    data |= {"buckets": {"type": "sizes", "table": [[16, 16], [16, 32]]}}
    path = write(recipe(tiny, data=data, keep="float32"))
    assert kolors(path, tmp_path / "out", "sink.shard=3") == 0
    models: Any = load_recipe(path)
    parts = build_parts(
        {name: getattr(models, name) for name in ("text_encoder", "autoencoder")}, BuildContext(), seed=0
    )
    pictures = models.data.build(BuildContext())
    wanted = {
        batch.records[0].id: (parts["autoencoder"].encode(batch.images / 127.5 - 1).detach()[0], batch.size[0])
        for part in pictures.parts(1)
        for batch in pictures.read(part)
    }
    stored = {"type": "zarr", "path": str(tmp_path / "out/stored.zarr"), "pictures": "latents", "text": "conditioning"}
    source = ZarrSource.model_validate(stored | {"batch": 2}).build(BuildContext())
    seen = set()
    for epoch in range(4):
        for batch in source.batches(seed=0, epoch=epoch):
            assert batch.conditioning is not None and batch.latents is not None
            for row, record in enumerate(batch.records):
                latents, size = wanted[record.id]
                torch.testing.assert_close(batch.latents[row], latents, rtol=0, atol=2e-5)
                assert torch.equal(batch.size[row], size)
                key = source.mix.choose(record, seed=0, epoch=epoch)
                text = parts["text_encoder"].encode([record.captions.get(key, "")])
                torch.testing.assert_close(batch.conditioning.pooled[row], text.pooled[0].detach(), rtol=0, atol=1e-5)
                seen.add((record.id, key))
    assert {id for id, _ in seen} == {f"p{i}" for i in range(9)} == wanted.keys()
    assert {key for _, key in seen} == {"zh_original", "en_synthetic", NO_CAPTION}


def test_a_source_that_cannot_be_read_in_parts_is_refused(
    tiny: SimpleNamespace, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_recipe(write(recipe(tiny)))
    monkeypatch.setattr(ZarrSource, "build", lambda self, ctx: object())
    with pytest.raises(RecipeError, match="data source 'zarr' cannot be precomputed: it cannot be read in parts"):
        loaded.build(BuildContext(out=tmp_path / "out"))
