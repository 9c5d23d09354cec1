"""What the recipe that tunes kernels can say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveInt

from kolors_kernel.component import BuildContext, ExistingPath
from kolors_kernel.kinds import RecipeConfig

if TYPE_CHECKING:
    from kolors_kernel.graph import Graph
    from kolors_ops.tuning.job import TuneJob


class Tune(RecipeConfig):
    """Time the kernels of the ops in configurations near those that ship, on the GPU at hand, and write a table.

    Its launches.json is what the ops' `table` takes. A configuration is timed after it has proved right, forward and
    backward, against float64. A run that was stopped goes on when the same command is given again.
    """

    type: Literal["tune_kernels"] = "tune_kernels"
    device: str = "cuda"
    """The GPU, by torch's name; ROCm's too are called cuda."""
    kernels: list[str] | None = None
    """Which kernels are tuned, by their names in the table; null: all of them. Others keep their rows."""
    bits: list[Literal[16, 32]] = Field(default=[16, 32])
    """Of which elements: 16 times bfloat16, 32 float32."""
    table: ExistingPath | None = None
    """Around whose rows is searched; null: the table that ships, and for a new family of GPUs those of its nearest."""
    candidates: PositiveInt = 24
    """How many configurations are tried at most for each row, besides its own."""
    gain: float = Field(default=0.02, ge=0, lt=1)
    """The share of the time that another configuration must save to take the place of the row's own."""
    milliseconds: PositiveInt = 100
    """How long each call is repeated for, to take the median."""

    @classmethod
    def tiny(cls) -> Self:
        """Return the tuning of no kernel, which needs no GPU: it writes the table as it ships."""
        return cls(device="cpu", kernels=[])

    def graphs(self) -> Mapping[str, Graph]:
        """Return what is done with one row of the table."""
        from kolors_ops.tuning.job import tuning

        return {"tune": tuning()}

    def build(self, ctx: BuildContext) -> TuneJob:
        """Return the job; nothing is compiled yet."""
        from kolors_ops.tuning.job import TuneJob

        return TuneJob(self, ctx)


COMPONENTS: tuple[type[RecipeConfig], ...] = (Tune,)
"""What a recipe can say about kernels."""
