"""The noise schedules a recipe can name (2.2.2), and the recipe that compares them.

Left out, because no table of alpha_bar says what they are: EDM (Karras et al. 2022) is a log-normal distribution of
training noise levels and a preconditioning of the network; the Laplace and Cauchy schedules (Hang and Gu 2024) weigh
the levels of a path and do not change it; the gamma of VDM (Kingma et al. 2021) is learned; offset noise changes the
noise and not its amount.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from kolors_kernel.component import BuildContext, ComponentConfig
from kolors_kernel.errors import needs
from kolors_kernel.graph import Graph
from kolors_kernel.kinds import NoiseScheduleConfig, RecipeConfig

if TYPE_CHECKING:
    from torch import Tensor

    from kolors_schedules.compare import ComparisonJob
    from kolors_schedules.tabulated import TabulatedSchedule

Steps = Annotated[int, Field(ge=2)]
Beta = Annotated[float, Field(gt=0, lt=1)]


class _BetaRange(NoiseScheduleConfig):
    beta_start: Beta
    beta_end: Beta
    steps: Steps

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start:g} must not be above beta_end {self.beta_end:g}")
        return self

    @classmethod
    def tiny(cls) -> Self:
        """Return twenty steps that end almost in noise."""
        return cls.model_validate({"steps": 20, "beta_start": 0.01, "beta_end": 0.4})

    def released_form(self) -> dict[str, Any]:
        """Return what a released scheduler_config.json says of this schedule."""
        betas = {"beta_start": self.beta_start, "beta_end": self._last_beta(), "num_train_timesteps": self.steps}
        return {"beta_schedule": self.type.removeprefix("extended_"), **betas}

    def _last_beta(self) -> float:
        return self.beta_end


class ScaledLinear(_BetaRange):
    """Betas whose square roots are evenly spaced: the schedule of SDXL and of Kolors (2.2.2).

    Kolors was released with 1100 steps to 0.014. That is 0.8 % steeper than the base and contains it to 0.0026 in
    alpha_bar, not exactly; the one that contains it exactly is `extended_scaled_linear`.
    """

    type: Literal["scaled_linear"] = "scaled_linear"
    steps: Steps = 1000
    """How many timesteps there are: 1000 in the base, 1100 in the released Kolors (2.2.2)."""
    beta_start: Beta = 0.00085
    """The variance added by the first timestep."""
    beta_end: Beta = 0.012
    """The variance added by the last timestep: 0.012 in the base, 0.014 in the released Kolors."""

    def build(self, ctx: BuildContext) -> TabulatedSchedule:
        """Make the table."""
        from kolors_schedules import tables

        return _tabulated(tables.scaled_linear(self.steps, self.beta_start, self.beta_end, line_steps=self.steps), ctx)


class ExtendedScaledLinear(_BetaRange):
    """The paper's extension: the base schedule's line, followed for more steps (2.2.2).

    Its first `base_steps` values are the base's, bit for bit. With the defaults the last beta is 0.0138278 and the
    terminal signal-to-noise ratio falls from 0.00468 to 0.00127.
    """

    type: Literal["extended_scaled_linear"] = "extended_scaled_linear"
    base_steps: Steps = 1000
    """How many timesteps the base schedule has."""
    steps: Steps = 1100
    """How many timesteps there are in all, the base's among them."""
    beta_start: Beta = 0.00085
    """The variance added by the first timestep."""
    beta_end: Beta = 0.012
    """The variance added by the last timestep of the base."""

    @model_validator(mode="after")
    def _goes_on(self) -> Self:
        if self.steps < self.base_steps:
            raise ValueError(f"steps {self.steps} must not be below base_steps {self.base_steps}")
        if (last := self._last_beta()) >= 1:
            raise ValueError(f"{self.steps} steps take the last beta to {last:g}, and it must stay below 1")
        return self

    def build(self, ctx: BuildContext) -> TabulatedSchedule:
        """Make the table."""
        from kolors_schedules import tables

        table = tables.scaled_linear(self.steps, self.beta_start, self.beta_end, line_steps=self.base_steps)
        return _tabulated(table, ctx)

    def _last_beta(self) -> float:
        rise = (self.beta_end**0.5 - self.beta_start**0.5) / (self.base_steps - 1)
        return float((self.beta_start**0.5 + rise * (self.steps - 1)) ** 2)

    @classmethod
    def tiny(cls) -> Self:
        """Return the twenty steps of the tiny base and two more."""
        return cls(base_steps=20, steps=22, beta_start=0.01, beta_end=0.4)


class Linear(_BetaRange):
    """Evenly spaced betas: DDPM's schedule (Ho et al. 2020)."""

    type: Literal["linear"] = "linear"
    steps: Steps = 1000
    """How many timesteps there are."""
    beta_start: Beta = 0.0001
    """The variance added by the first timestep."""
    beta_end: Beta = 0.02
    """The variance added by the last timestep."""

    def build(self, ctx: BuildContext) -> TabulatedSchedule:
        """Make the table."""
        from kolors_schedules import tables

        return _tabulated(tables.linear(self.steps, self.beta_start, self.beta_end), ctx)


class _Shape(NoiseScheduleConfig):
    steps: Steps = 1000
    """How many timesteps there are."""

    @classmethod
    def tiny(cls) -> Self:
        """Return twenty steps."""
        return cls.model_validate({"steps": 20})


class Cosine(_Shape):
    """A squared cosine of time (Nichol and Dhariwal 2021).

    The shifted cosine of simple diffusion is `{type: log_snr_shift, of: {type: cosine}, factor: 0.5}`.
    """

    type: Literal["cosine"] = "cosine"
    offset: Annotated[float, Field(ge=0)] = 0.008
    """Where on the cosine time begins, so that the first timesteps are not too small."""
    max_beta: Beta = 0.999
    """The most variance one timestep may add: it keeps the last one from ending in pure noise."""

    def build(self, ctx: BuildContext) -> TabulatedSchedule:
        """Make the table."""
        from kolors_schedules import tables

        return _tabulated(tables.cosine(self.steps, offset=self.offset, max_beta=self.max_beta), ctx)


class Sigmoid(_Shape):
    """A piece of a logistic curve, ending in pure noise (Jabri et al. 2022; Chen 2023)."""

    type: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    """Where on the logistic curve the clean picture stands."""
    end: float = 3.0
    """Where on the logistic curve pure noise stands; above `start`."""
    temperature: PositiveFloat = 1.0
    """What the curve's argument is divided by: lower is steeper in the middle."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"start {self.start:g} must be below end {self.end:g}")
        return self

    def build(self, ctx: BuildContext) -> TabulatedSchedule:
        """Make the table."""
        from kolors_schedules import tables

        table = tables.sigmoid(self.steps, start=self.start, end=self.end, temperature=self.temperature)
        return _tabulated(table, ctx)


class RectifiedFlow(_Shape):
    """The signal-to-noise ratios of a straight path from picture to pure noise.

    Only the ratios of Esser et al. 2024: x_t keeps unit variance and the network predicts epsilon, as everywhere here,
    where a flow model sees the unscaled sum and predicts a velocity.
    """

    type: Literal["rectified_flow"] = "rectified_flow"
    shift: PositiveFloat = 1.0
    """How far the path is moved towards noise: sigma / (1 - sigma) is multiplied by it; 3 at 1024 x 1024 in SD3."""

    def build(self, ctx: BuildContext) -> TabulatedSchedule:
        """Make the table."""
        from kolors_schedules import tables

        return _tabulated(tables.rectified_flow(self.steps, shift=self.shift), ctx)


class ZeroTerminalSNR(NoiseScheduleConfig):
    """Another schedule, rescaled to end in pure noise (Lin et al. 2023).

    The first timestep stays as it was.
    """

    type: Literal["zero_terminal_snr"] = "zero_terminal_snr"
    of: NoiseScheduleConfig = ScaledLinear()
    """The schedule that is rescaled."""

    def build(self, ctx: BuildContext) -> TabulatedSchedule:
        """Make the table."""
        from kolors_schedules import tables

        return _tabulated(tables.zero_terminal_snr(self.of.build(ctx).alpha_bar), ctx)

    @classmethod
    def tiny(cls) -> Self:
        """Return the tiny base, rescaled."""
        return cls(of=ScaledLinear.tiny())


class LogSNRShift(NoiseScheduleConfig):
    """Another schedule with its signal-to-noise ratios multiplied by factor².

    The shift of simple diffusion (Hoogeboom et al. 2023). This is also the input scaling of Chen 2023: pictures
    multiplied by `factor` before noise is added, and the sum brought back to unit variance, are the same path.
    """

    type: Literal["log_snr_shift"] = "log_snr_shift"
    of: NoiseScheduleConfig = ScaledLinear()
    """The schedule that is shifted."""
    factor: PositiveFloat = 0.5
    """The signal's factor: the side the schedule was made for over the side it is used at, as 64 / 128."""

    def build(self, ctx: BuildContext) -> TabulatedSchedule:
        """Make the table."""
        from kolors_schedules import tables

        return _tabulated(tables.shift_log_snr(self.of.build(ctx).alpha_bar, self.factor), ctx)

    @classmethod
    def tiny(cls) -> Self:
        """Return the tiny base, shifted."""
        return cls(of=ScaledLinear.tiny())


class CompareSchedules(RecipeConfig):
    """Draws schedules over each other, as in Figure 5 (2.2.2), and measures them.

    Writes schedules.png and schedules.json: terminal signal-to-noise ratios, and the largest gap to the first
    schedule over the timesteps that both have.
    """

    type: Literal["compare_schedules"] = "compare_schedules"
    schedules: dict[str, NoiseScheduleConfig] = Field(min_length=2)
    """The schedules by the name that the picture gives them; the first is the one that the others are held against."""

    def graphs(self) -> Mapping[str, Graph]:
        """Return the one graph: measure, then draw."""
        from kolors_schedules.compare import comparison_graph

        return {"compare": comparison_graph()}

    def build(self, ctx: BuildContext) -> ComparisonJob:
        """Build the schedules. Raises MissingDependency without matplotlib."""
        with needs("matplotlib", extra="plot", wanted_by=self.type):
            import matplotlib.figure  # noqa: F401  (asked for here, so that its absence is known before any work)
        from kolors_schedules.compare import ComparisonJob

        built = {name: schedule.build(BuildContext()) for name, schedule in self.schedules.items()}
        return ComparisonJob(built, graphs=self.graphs(), out=ctx.out)

    @classmethod
    def tiny(cls) -> Self:
        """Return the tiny base beside its extension."""
        return cls(schedules={"base": ScaledLinear.tiny(), "extended": ExtendedScaledLinear.tiny()})


_CURVES = (ScaledLinear, ExtendedScaledLinear, Linear, Cosine, Sigmoid, RectifiedFlow, ZeroTerminalSNR, LogSNRShift)
COMPONENTS: tuple[type[ComponentConfig], ...] = (*_CURVES, CompareSchedules)
"""Everything this plugin provides."""


def _tabulated(alpha_bar: Tensor, ctx: BuildContext) -> TabulatedSchedule:
    from kolors_schedules.tabulated import TabulatedSchedule

    return TabulatedSchedule(alpha_bar, device=ctx.device)
