"""What a recipe can say about workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, PositiveInt

from kolors_kernel.component import BuildContext
from kolors_kernel.errors import needs
from kolors_kernel.kinds import WorkersConfig

if TYPE_CHECKING:
    from kolors_workers.pool import ProcessPool
    from kolors_workers.ray_actors import RayActors


class Pool(WorkersConfig):
    """Works in this process, or in several of its own on this machine."""

    type: Literal["pool"] = "pool"
    count: PositiveInt = 1
    """How many processes work at a time; 1 is this very process. Each keeps what it loaded."""

    def build(self, ctx: BuildContext) -> ProcessPool:
        """Make the pool; no process is started yet."""
        from kolors_workers.pool import ProcessPool

        return ProcessPool(self.count)


class Ray(WorkersConfig):
    """Works in Ray actors, on this machine or on a cluster."""

    type: Literal["ray"] = "ray"
    count: PositiveInt = 1
    """How many actors work at a time. Each keeps what it loaded."""
    gpus: NonNegativeFloat = 0
    """GPUs that Ray keeps for each actor; a fraction lets several share one."""
    cpus: NonNegativeFloat = 1
    """CPUs that Ray keeps for each actor."""
    address: str = "local"
    """The cluster, as host:port, ray://host:port or auto. `local` starts Ray on this machine for as long as the work
    takes. A process that is connected to Ray already stays with that."""

    def build(self, ctx: BuildContext) -> RayActors:
        """Make the crew; Ray is not started yet."""
        with needs("ray", extra="ray", wanted_by="ray"):
            from kolors_workers.ray_actors import RayActors

        return RayActors(self.count, gpus=self.gpus, cpus=self.cpus, address=self.address)
