"""The training loop: any graph with a loss, any trained parts, stage after stage, resumable bit for bit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kolors_kernel.errors import Interrupted, RunError
from kolors_kernel.values import Batch, Event
from kolors_recipes import checkpoints
from kolors_recipes.averaging import Average
from kolors_recipes.batches import ports
from kolors_recipes.optimizer import learning_rate, optimizer_for, optimizer_state, restore_optimizer, step_clipped
from kolors_recipes.position import Position
from kolors_recipes.progress import Progress
from kolors_recipes.ranks import Ranks, together
from kolors_recipes.signals import noticing_signals
from kolors_weights.precision import exact_onednn

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kolors_kernel.component import BuildContext
    from kolors_kernel.graph import Graph
    from kolors_kernel.protocols import DataSource, Observer
    from kolors_recipes.training_config import Phase, TrainingRecipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunnableStage:
    """One stage, ready to run: its settings, its graph, what the graph reads beside the batch, what it trains.

    `draw` returns sample pictures and their prompts; it is called every `draw_every` steps.
    """

    phase: Phase
    graph: Graph
    data: DataSource
    ports: Mapping[str, Any]
    trains: Mapping[str, nn.Module]
    draw: Callable[[], tuple[Tensor, Sequence[str]]] | None = None
    draw_every: int = 1


class Training:
    """A job that trains parts in stages and leaves checkpoints and the averaged weights below `out`.

    All randomness of a step comes from (seed, step) and all data order from (seed, epoch), so a run that stopped
    anywhere goes on exactly as if it had not.
    """

    def __init__(
        self,
        recipe: TrainingRecipe,
        stages: Sequence[RunnableStage],
        observers: Sequence[Observer],
        *,
        out: Path,
        device: torch.device,
        save: Callable[[Path], None],
    ) -> None:
        self.graphs: Mapping[str, Graph] = {stage.phase.name: stage.graph for stage in stages}
        self.recipe, self.device = recipe, device
        self._stages, self._observers, self._out, self._save = stages, observers, out, save
        self._modules = {name: module for stage in stages for name, module in stage.trains.items()}
        self.ranks = Ranks()

    @classmethod
    def assemble(
        cls, recipe: TrainingRecipe, stages: Sequence[RunnableStage], ctx: BuildContext, *, save: Callable[[Path], None]
    ) -> Training:
        """Build the recipe's observers, and the job over its stages; `save` writes the parts into a folder.

        Raises RecipeError when `ctx.out` holds a run of another recipe: now, before a file of that run is touched.
        """
        found = checkpoints.latest_checkpoint(ctx.out / "checkpoints")
        if found is not None:
            state = checkpoints.read_state(found)
            finished = Position.from_state(state["position"]).stage
            now = recipe.model_dump(mode="json")
            checkpoints.refuse_other_recipe(state["recipe"], now, ctx.out, finished=finished)
        observers = [observer.build(ctx) for observer in recipe.observers]
        return cls(recipe, stages, observers, out=ctx.out, device=torch.device(ctx.device), save=save)

    def run(self) -> Mapping[str, float]:
        """Train what is left to train; return the steps done and the last loss noted.

        Raises Interrupted after writing a checkpoint when SIGINT or SIGTERM arrives, RunError when the loss or the
        gradient is not finite or the disk is full, RecipeError when another run is at work in `out`.
        """
        with together(self.device) as self.ranks, exact_onednn() as products, ExitStack() as alone:
            if self.ranks.first:
                logger.info("float32 products on a CPU: %s", products)
                alone.enter_context(checkpoints.alone_in(self._out))
            found = checkpoints.latest_checkpoint(self._out / "checkpoints")
            at = Position() if found is None else self._resume(found)
            self.ranks.agree_on(self._modules.values())  # and every rank has read the checkpoint when this returns
            self.tell(Event("start", self._stages[at.stage].phase.name, at.step))
            figures: dict[str, float] = {}
            for stage in self._stages[at.stage :]:
                figures |= _StageRun(self, stage, at, found).run()
                found = None
                at = Position(step=at.step, stage=at.stage + 1)
            if not self.ranks.first:
                return {}
            logger.info("weights: %s", self._out / "weights")
            return {"steps": at.step} | figures

    def _resume(self, found: Path) -> Position:
        """Load the trained parts' weights from a checkpoint and return where it was written."""
        at = Position.from_state(checkpoints.read_state(found)["position"])
        for name, module in self._modules.items():
            module.load_state_dict(checkpoints.read_tensors(found, name))
        if self.ranks.first:
            logger.info("going on from %s", found)
        return at

    def tell(self, event: Event) -> None:
        """Tell every observer, on the first rank."""
        for observer in self._observers if self.ranks.first else ():
            observer.on(event)

    def keep(self, at: Position, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint of every trained part, of the stage's own tensors by file name, and of where it is.

        The first rank does; the others have the same.
        """
        if not self.ranks.first:
            return
        parts = {name: module.state_dict() for name, module in self._modules.items()}
        state = {"position": asdict(at), "recipe": self.recipe.model_dump(mode="json")}
        folder = self._out / "checkpoints"
        checkpoints.write_checkpoint(folder, at.step, parts | dict(tensors), state, keep=self.recipe.keep)
        self.tell(Event("checkpoint", self._stages[at.stage].phase.name, at.step))

    def save(self) -> None:
        """Write the weights as they are, on the first rank; the others wait."""
        if self.ranks.first:
            self._save(self._out / "weights")
        self.ranks.wait()


class _StageRun:
    """One stage under way: its optimiser, its averages and its place in the data."""

    def __init__(self, job: Training, stage: RunnableStage, at: Position, found: Path | None) -> None:
        self._job, self._stage, self._at = job, stage, at
        for module in stage.trains.values():
            # Convolutions go back through channels that lie last twice as fast.
            module.requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._averages = {n: Average(m, stage.phase.ema) for n, m in stage.trains.items()} if stage.phase.ema else {}
        self._parameters = [p for module in stage.trains.values() for p in module.parameters()]
        self._optimizer = optimizer_for(self._parameters, stage.phase.optimizer)
        if found is not None:
            restore_optimizer(self._optimizer, checkpoints.read_tensors(found, "optimizer"))
            for name, average in self._averages.items():
                average.restore(checkpoints.read_tensors(found, f"{name}.average"))
        # This rank's share of the loss and the norm of the gradient, for each step since the last note: reading them
        # would make a GPU wait.
        self._unread: list[Tensor] = []

    def run(self) -> dict[str, float]:
        job, at, phase = self._job, self._at, self._stage.phase
        figures: dict[str, float] = {}
        batches = at.batches(self._stage.data, job.ranks, seed=job.recipe.seed, stage=phase.name)
        steps = Progress(phase.name, phase.steps, done=at.stage_step, silent=not job.ranks.first)
        with noticing_signals() as stop, steps as progress:
            while at.stage_step < phase.steps:
                self._step(next(batches))
                if at.step % job.recipe.log_every == 0 or at.stage_step == phase.steps:
                    figures = self._note()
                progress.advance(f"loss {figures['loss']:.4f}" if figures else "")
                if self._stage.draw is not None and at.step % self._stage.draw_every == 0 and job.ranks.first:
                    self._show(self._stage.draw)
                signal = job.ranks.any_signal(stop.signal)
                if signal is not None or at.step % job.recipe.checkpoint_every == 0:
                    self._checkpoint()
                if signal is not None:
                    raise Interrupted(signal, f"step {at.step} is kept; run it again with the same --out to go on")
        if figures:
            self._checkpoint()
        for average in self._averages.values():
            average.adopt()  # what is saved is what the next stage starts from
        job.save()
        job.tell(Event("stage_end", phase.name, at.step))
        for module in self._stage.trains.values():
            module.requires_grad_(False)
        return figures

    def _step(self, batch: Batch) -> None:
        at, phase, device, ranks = self._at, self._stage.phase, self._job.device, self._job.ranks
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(phase.optimizer, at.stage_step, phase.steps)
        random = torch.Generator().manual_seed(_seed_of(self._job.recipe.seed, at.step, ranks.rank))
        with torch.autocast(device.type, torch.bfloat16, enabled=phase.autocast == "bfloat16"):
            (loss,) = self._stage.graph.run(random=random, **ports(batch, device), **self._stage.ports)
        # The mean over all ranks' samples: each rank's own mean counts by its share of the weight.
        mine = batch.weight.double().sum()
        whole = ranks.add_up(mine.clone())
        loss = loss * float(mine / whole.where(whole > 0, 1))  # 0 where all samples of all ranks are damaged
        loss.backward()
        ranks.add_up_gradients(self._parameters)
        norm = step_clipped(self._optimizer, self._parameters, phase.optimizer.clip)
        for average in self._averages.values():
            average.update()
        self._unread.append(torch.stack([loss.detach(), norm.to(loss)]))
        at.step, at.stage_step, at.batch = at.step + 1, at.stage_step + 1, at.batch + 1

    def _note(self) -> dict[str, float]:
        losses, norms = torch.stack(self._unread).double().cpu().unbind(1)
        self._unread.clear()
        loss, norm = float(self._job.ranks.add_up(losses.contiguous()).mean()), float(norms.mean())
        if not math.isfinite(loss) or not math.isfinite(norm):
            wrong = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
            raise RunError(
                f"{wrong} near step {self._at.step} of stage '{self._stage.phase.name}'; the last "
                "checkpoint is untouched. A lower optimizer.learning_rate or autocast: off may help"
            )
        rate = float(self._optimizer.param_groups[0]["lr"])
        figures = {"loss": loss, "learning_rate": rate}
        self._job.tell(Event("train_step", self._stage.phase.name, self._at.step, scalars=figures))
        return figures

    def _show(self, draw: Callable[[], tuple[Tensor, Sequence[str]]]) -> None:
        with self._averaged():
            images, prompts = draw()
        self._job.tell(Event("samples", self._stage.phase.name, self._at.step, images=images, prompts=prompts))

    def _checkpoint(self) -> None:
        if self._unread:
            self._note()  # weights moved by a gradient that is not finite must not reach the disk
        averages = {f"{name}.average": average.state() for name, average in self._averages.items()}
        self._job.keep(self._at, {"optimizer": optimizer_state(self._optimizer), **averages})

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        with ExitStack() as stack:
            for average in self._averages.values():
                stack.enter_context(average.swapped_in())
            yield


def _seed_of(seed: int, step: int, rank: int) -> int:
    """Return the seed of a rank's step; torch's generator takes 32 bits of it, over which ranks are spread evenly."""
    return (seed * 1_000_003 + step + rank * 0x9E3779B1) % 2**32
