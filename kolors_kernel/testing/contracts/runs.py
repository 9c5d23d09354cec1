"""The contracts of runs: prompt set, metric, workers, observer, recipe."""

from __future__ import annotations

import json
import math
import operator
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kolors_kernel.errors import RecipeError
from kolors_kernel.kinds import MetricConfig, ObserverConfig, PromptSetConfig, RecipeConfig, WorkersConfig
from kolors_kernel.recipe_file import load_recipe, write_recipe
from kolors_kernel.registry import discover
from kolors_kernel.testing.contracts.component import ComponentContract
from kolors_kernel.values import Event, PromptCase


class PromptSetContract(ComponentContract[PromptSetConfig]):
    """What every prompt set promises."""

    def test_lists_prompts_in_one_order(self, tmp_path: Path) -> None:
        """At least one case, each with text, language and part; the same from another object."""
        first, second = (list(self.config.build(self.context(tmp_path)).cases()) for _ in range(2))
        assert first
        assert first == second
        for case in first:
            assert isinstance(case, PromptCase)
            assert case.language in ("zh", "en")
            assert case.part


class MetricContract(ComponentContract[MetricConfig]):
    """What every metric promises."""

    def cases(self) -> Sequence[PromptCase]:
        """Return four cases the metric understands: of the first installed prompt set unless overridden."""
        config = next(discover().of_kind("prompt_set"))
        assert issubclass(config, PromptSetConfig)
        return list(config.tiny().build(self.context(Path())).cases())[:4]

    def images(self, count: int) -> Tensor:
        """Return pictures [B, 3, 64, 64] in [-1, 1]."""
        return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def test_reports_in_json_over_everything_taken_in(self, tmp_path: Path) -> None:
        """The report does not depend on how the pictures were divided into batches."""
        cases = self.cases()
        images = self.images(len(cases))
        before, reports = images.clone(), []
        for batch in (len(cases), 1):
            metric = self.config.build(self.context(tmp_path))
            for start in range(0, len(cases), batch):
                metric.update(images[start : start + batch], cases[start : start + batch])
            reports.append(json.dumps(metric.compute(), sort_keys=True))
        assert reports[0] == reports[1]
        assert torch.equal(images, before)


class WorkersContract(ComponentContract[WorkersConfig]):
    """What every crew of workers promises. Slow, as there may be a cluster to start."""

    def making(self, work: Callable[[Any], Any]) -> Callable[[], Callable[[Any], Any]]:
        """Return what makes `work` in a worker, of parts it can load without importing tests and torch."""
        return partial(partial, work)

    @pytest.mark.slow
    def test_makes_something_of_each_item_once(self, tmp_path: Path) -> None:
        """Equal items too, in any order; of no items, nothing. A signal is the caller's to handle all the while."""
        workers, handler = self.config.build(self.context(tmp_path)), signal.getsignal(signal.SIGTERM)
        assert list(workers.map(self.making(operator.neg), [])) == []
        found = []
        for pair in workers.map(self.making(operator.neg), [3, 1, 3, 2]):
            found.append(pair)
            assert signal.getsignal(signal.SIGTERM) is handler
        assert sorted(found) == [(1, -1), (2, -2), (3, -3), (3, -3)]

    @pytest.mark.slow
    def test_raises_what_the_work_raised(self, tmp_path: Path) -> None:
        """An error of ours arrives as what it is."""
        workers = self.config.build(self.context(tmp_path))
        with pytest.raises(RecipeError, match="no_such_recipe"):
            list(workers.map(self.making(load_recipe), ["no_such_recipe"]))


class ObserverContract(ComponentContract[ObserverConfig]):
    """What every observer promises."""

    def events(self) -> list[Event]:
        """Return one event of each name, in the order of a run."""
        images = torch.zeros(2, 3, 16, 16)
        return [
            Event("start", "concept", 0),
            Event("train_step", "concept", 1, {"loss": 0.5, "learning_rate": 1e-4}),
            Event("train_step", "concept", 2, {"loss": 0.25, "learning_rate": 1e-4}),
            Event("samples", "concept", 2, images=images, prompts=("一只猫", "a dog")),
            Event("checkpoint", "concept", 2),
            Event("stage_end", "concept", 2, {"loss": 0.25}),
        ]

    def test_takes_every_event_and_writes_below_out_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing appears in the working folder, and a picture is not changed by being looked at."""
        working = tmp_path / "working"
        working.mkdir()
        monkeypatch.chdir(working)
        observer = self.config.build(self.context(tmp_path / "out"))
        events = self.events()
        for event in events:
            observer.on(event)
        assert not list(working.iterdir())
        assert all(event.images is None or not event.images.any() for event in events)


class RecipeContract(ComponentContract[RecipeConfig]):
    """What every recipe promises. `tiny()` is a whole small piece of work."""

    def test_names_its_graphs_without_building(self) -> None:
        """Each graph has a step and an output."""
        graphs = self.config.graphs()
        assert graphs
        assert all(graph.steps and graph.outputs for graph in graphs.values())
        assert all(graph.describe() for graph in graphs.values())

    def test_written_down_it_is_the_same_recipe(self, tmp_path: Path) -> None:
        """The file of a run, read again, is that run."""
        write_recipe(self.config, tmp_path / "recipe.yaml")
        assert load_recipe(tmp_path / "recipe.yaml") == self.config

    def test_runs_and_returns_figures(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Twice the same pictures and weights, bit for bit, and nothing written outside `out`."""
        working = tmp_path / "working"
        working.mkdir()
        monkeypatch.chdir(working)
        left = []
        for name in ("first", "second"):
            job = self.config.build(self.context(tmp_path / name))
            figures = job.run()
            assert all(isinstance(value, int | float) and not math.isnan(value) for value in figures.values())
            files = [p for p in sorted((tmp_path / name).rglob("*")) if p.suffix in (".png", ".safetensors")]
            left.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in files})
        assert left[0] == left[1]
        assert not list(working.iterdir())
