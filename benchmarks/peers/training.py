"""A training step: a batch of two, loss, gradient, its norm clipped, AdamW, moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from benchmarks.measure import Sample, Watch
from benchmarks.peers.contest import EAGER, Contest, gflop
from benchmarks.peers.loop import AVERAGE, BETAS, CLIP, DECAY, RATE, STEPS, Loop
from benchmarks.peers.text import merged, padded
from benchmarks.peers.unet import SIDES, TEXT_WIDTHS, build_ours, save_peer

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.peers.loop import Text
    from kolors_kernel.values import Batch, Event

SAME_LOSS = {"off": 1e-5, "bfloat16": 1e-3}
"""How far the loss may be from diffusers' in float32, relative to it, by what autocast is set to."""


@contextmanager
def contest(size: str, autocast: str) -> Iterator[Contest]:
    """Train: diffusers' net in the loop of its examples in float32, ours as the train recipe does it."""
    import torch

    with TemporaryDirectory() as folder:
        save_peer(size, Path(folder, "net"), dtype="float32")
        net, side, width = str(Path(folder, "net")), SIDES[size], TEXT_WIDTHS[size]
        latents = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(2))
        pixels = 8 * side
        sizes = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * 2, dtype=torch.float32)
        text = (*padded(width, width, "float32"), sizes)
        backbone, timesteps = build_ours("sdxl_unet", net, size, "float32"), torch.tensor([400, 900])
        peers = {EAGER: Loop(net), f"{EAGER}, tuned": Loop(net, tuned=True, autocast=autocast != "off")}
        turns = _Turns(latents, text, peers)
        yield Contest(
            ours_name="train",
            run=partial(_run, backbone, turns, Path(folder, "out"), autocast),
            error=turns.error,
            limit=SAME_LOSS[autocast],
            gflop=(
                _gflop(backbone.module, lambda: backbone.predict(latents, timesteps, merged(*text[:2]), sizes).sum()),
                _gflop(peers[EAGER].net, lambda: peers[EAGER].loss(latents, latents, timesteps, text)),
            ),
            dtype="float32" if autocast == "off" else "bfloat16",
        )


def _gflop(module: Any, loss: Callable[[], Any]) -> float:
    found = gflop(lambda: loss().backward())
    module.zero_grad()
    return found


def _run(backbone: Any, turns: _Turns, out: Path, autocast: str, rounds: int) -> Mapping[str, Sequence[Sample]]:
    """Run the train recipe's own job; its data take turns with the peers between two of its batches."""
    import torch
    from kolors_recipes.train import training_graph
    from kolors_recipes.training import RunnableStage, Training

    from kolors_kernel import BuildContext, discover

    turns.rounds = rounds
    recipe = cast(Any, discover().find("recipe", "train")).tiny().model_copy(update={"log_every": 1})
    schedule = cast(Any, discover().find("noise_schedule", "scaled_linear")).model_validate({"steps": STEPS, **BETAS})
    turns.schedule = schedule.build(BuildContext())
    phase = recipe.stages[0]
    optimizer = type(phase.optimizer)(learning_rate=RATE, weight_decay=DECAY, clip=CLIP)
    settings = {"steps": rounds + 2, "ema": AVERAGE, "autocast": autocast, "optimizer": optimizer}
    stage = RunnableStage(
        phase=phase.model_copy(update=settings),
        graph=training_graph(("latents", "conditioning")),
        data=turns,
        ports={"backbone": backbone, "schedule": turns},
        trains={"backbone": backbone.module},
    )
    job = Training(recipe, [stage], [turns], out=out, device=torch.device("cpu"), save=lambda folder: None)
    try:
        job.run()
    except _Enough:
        return turns.samples
    raise AssertionError("the job ended before its rounds did")


class _Enough(Exception):
    """All rounds are done."""


class _Turns:
    """The data source of our job, which lets the peers train whenever it is asked for the next batch.

    It is the noise schedule too, so that the peers get the very noise and timesteps that our job drew, and the observer
    that learns our loss.
    """

    def __init__(self, latents: Tensor, text: Text, peers: Mapping[str, Loop]) -> None:
        self.latents, self.text, self.peers = latents, text, peers
        self.rounds = 0
        self.schedule: Any = None
        self.samples: dict[str, list[Sample]] = {name: [] for name in ("ours", *peers)}
        self._drawn: dict[str, Tensor] = {}
        self._loss = float("nan")
        self._errors: list[float] = []

    def batches(self, *, seed: int, epoch: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[Batch]:
        """Yield the same batch again and again; what happens until the next is asked for is a step of ours."""
        import torch

        from kolors_kernel.values import Batch, SampleRecord

        rows, pooled, sizes = self.text
        records = [SampleRecord(str(number), (8, 8), {}) for number in range(len(rows))]
        batch = Batch(records, sizes, torch.ones(2), latents=self.latents, conditioning=merged(rows, pooled))
        for number in range(self.rounds + 1):
            watch = Watch()
            yield batch
            taken = {"ours": watch.sample}
            for name, loop in self.peers.items():
                watch = Watch()
                loss = loop.step(self.latents, text=self.text, **self._drawn)
                taken[name] = watch.sample
                if name == EAGER:
                    self._errors.append(abs(self._loss - loss) / loss)
            for name, sample in taken.items() if number else ():  # the first round does not count
                self.samples[name].append(sample)
        raise _Enough

    @property
    def alpha_bar(self) -> Tensor:
        """What the schedule's is."""
        return cast("Tensor", self.schedule.alpha_bar)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse, and remember by what."""
        self._drawn = {"noise": noise, "timesteps": timesteps}
        return cast("Tensor", self.schedule.add_noise(latents, noise, timesteps))

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the schedule does."""
        return cast("tuple[Tensor, Tensor]", self.schedule.coefficients(timesteps))

    def on(self, event: Event) -> None:
        """Learn our loss."""
        self._loss = event.scalars.get("loss", self._loss)

    def error(self) -> float:
        """Return the largest difference of our loss from diffusers' in any step, relative to it."""
        return max(self._errors)
