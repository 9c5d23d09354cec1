"""The solvers and the guidance a recipe can name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt

from kolors_kernel.component import BuildContext, ComponentConfig
from kolors_kernel.kinds import GuidanceConfig, SolverConfig

if TYPE_CHECKING:
    from kolors_solvers.dpmpp import DPMpp2MSolver
    from kolors_solvers.first_order import FirstOrderSolver
    from kolors_solvers.guidance import ClassifierFreeGuidance

Fraction = Annotated[float, Field(ge=0, le=1)]


class _Spaced(SolverConfig):
    steps: PositiveInt = 50
    """How often the denoiser is asked."""
    spacing: Literal["leading", "trailing", "linspace", "karras"] = "leading"
    """Where on the schedule: `leading` goes by a whole stride from the clean end, as the released Kolors, and never
    sees the last timesteps; `trailing` goes by an even stride from the noisy end; `linspace` includes both ends;
    `karras` spaces sigma^(1/7) evenly between both ends."""
    steps_offset: NonNegativeInt = 1
    """What `leading` adds to every timestep."""

    @classmethod
    def tiny(cls) -> Self:
        """Return two steps over the whole schedule."""
        return cls.model_validate({"steps": 2, "spacing": "trailing"})


class _Euler(_Spaced):
    def _solver(self, *, eta: float) -> FirstOrderSolver:
        from kolors_solvers.first_order import FirstOrderSolver
        from kolors_solvers.levels import Spacing

        spacing = Spacing(self.steps, self.spacing, offset=self.steps_offset)
        # As released: where leading spacing begins, some of x_t should be picture, and noise makes up its variance.
        return FirstOrderSolver(spacing, start="unit" if self.spacing == "leading" else "scaled", eta=eta)


class Euler(_Euler):
    """Euler's method on the probability flow: as set here, the released Kolors' solver."""

    type: Literal["euler"] = "euler"

    def build(self, ctx: BuildContext) -> FirstOrderSolver:
        """Make the solver."""
        return self._solver(eta=0.0)


class EulerAncestral(_Euler):
    """Euler's method with fresh noise in every step, as much as DDPM's.

    Needs a generator to draw it from.
    """

    type: Literal["euler_ancestral"] = "euler_ancestral"

    def build(self, ctx: BuildContext) -> FirstOrderSolver:
        """Make the solver; it draws from the generator it is given."""
        return self._solver(eta=1.0)


class DDIM(_Spaced):
    """Denoising diffusion implicit models (Song et al. 2020).

    The last step goes all the way to the clean picture. With `eta` above 0 it needs a generator to draw noise from.
    """

    type: Literal["ddim"] = "ddim"
    eta: Fraction = 0.0
    """How much fresh noise a step adds: 0 none, 1 as much as DDPM."""

    def build(self, ctx: BuildContext) -> FirstOrderSolver:
        """Make the solver; it draws from the generator it is given, unless eta is 0."""
        from kolors_solvers.first_order import FirstOrderSolver
        from kolors_solvers.levels import Spacing

        spacing = Spacing(self.steps, self.spacing, offset=self.steps_offset, whole=True)
        return FirstOrderSolver(spacing, start="unit", eta=self.eta)


class DPMpp2M(_Spaced):
    """DPM-Solver++ 2M (Lu et al. 2022): second order in the predicted picture.

    25 steps with Karras spacing are what Kolors is usually drawn with when 50 Euler steps are too many.
    """

    type: Literal["dpmpp_2m"] = "dpmpp_2m"
    steps: PositiveInt = 25
    """How often the denoiser is asked."""
    spacing: Literal["leading", "trailing", "linspace", "karras"] = "karras"
    """As in `euler`, but `leading` and `linspace` count the end of the walk as one more point of the row."""

    def build(self, ctx: BuildContext) -> DPMpp2MSolver:
        """Make the solver."""
        from kolors_solvers.dpmpp import DPMpp2MSolver
        from kolors_solvers.levels import Spacing

        return DPMpp2MSolver(
            Spacing(self.steps, self.spacing, offset=self.steps_offset, whole=True, end_is_a_point=True)
        )


class ClassifierFree(GuidanceConfig):
    """Classifier-free guidance: `scale` times the way from the negative prompt to the prompt."""

    type: Literal["classifier_free"] = "classifier_free"
    scale: Annotated[float, Field(ge=1)] = 5.0
    """1 is no guidance, at half the cost; 5 is what the released Kolors is sampled with."""
    rescale: Fraction = 0.0
    """How far the result is brought back to the standard deviation of the prompt's own prediction (Lin et al. 2023)."""

    def build(self, ctx: BuildContext) -> ClassifierFreeGuidance:
        """Make the guidance."""
        from kolors_solvers.guidance import ClassifierFreeGuidance

        return ClassifierFreeGuidance(scale=self.scale, rescale=self.rescale)


COMPONENTS: list[type[ComponentConfig]] = [Euler, EulerAncestral, DDIM, DPMpp2M, ClassifierFree]
"""Everything this plugin provides."""
