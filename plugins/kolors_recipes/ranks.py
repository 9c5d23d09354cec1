"""Several processes that train one model: torchrun starts them, each takes its share of every batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, distributed, nn

from kolors_kernel.errors import RunError


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is, and what they do together; alone, nothing has to be done."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and draws."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all ranks. Raises RunError when a rank is gone."""
        if self.world > 1:
            try:
                distributed.all_reduce(tensor)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise RunError(
                    f"rank {self.rank} of {self.world} lost the others: {reason}; run it again to go on"
                ) from error
        return tensor

    def wait(self) -> None:
        """Return once every rank is here."""
        self.add_up(torch.zeros(1))

    def any_signal(self, noticed: int | None) -> int | None:
        """Return the signal that this rank noticed, or one that another did: all stop at the same step."""
        if self.world > 1 and self.add_up(torch.tensor(float(noticed is not None))):
            return noticed or signal.SIGTERM
        return noticed if self.world == 1 else None

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all ranks, in one message for each dtype.

        A parameter that took no part on this rank may have on another, so it counts as zero.
        """
        if self.world == 1:
            return
        for _, group in groupby(sorted(parameters, key=lambda p: str(p.dtype)), key=lambda p: p.dtype):
            members = list(group)
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in members]
            flat = self.add_up(torch.cat([gradient.flatten() for gradient in gradients]))
            parts = torch.split(flat, [p.numel() for p in members])
            for parameter, part in zip(members, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def agree_on(self, modules: Iterable[nn.Module]) -> None:
        """Give every rank the first one's weights: what each drew or loaded by itself need not be the same."""
        if self.world > 1:
            for module in modules:
                for tensor in (*module.parameters(), *module.buffers()):
                    distributed.broadcast(tensor.detach(), src=0)


def take_own_device(device: str) -> None:
    """Make "cuda" mean this process's own GPU, the one torchrun numbered it for."""
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


@contextmanager
def together(device: torch.device) -> Iterator[Ranks]:
    """Join the processes that torchrun started with this one, for a while; without torchrun there is just this one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()
