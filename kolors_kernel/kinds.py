"""One config base class per kind: what a field of a recipe is annotated with, and what a component subclasses.

The object a `build` returns is described in `kolors_kernel.protocols`, under the kind's name.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from kolors_kernel.component import BuildContext, ComponentConfig
from kolors_kernel.values import ConditioningSpec, LatentSpec

if TYPE_CHECKING:
    from kolors_kernel import protocols
    from kolors_kernel.graph import Graph


class TextEncoderConfig(ComponentConfig):
    """Turns prompts into conditioning (2.1.1)."""

    kind: ClassVar[str] = "text_encoder"

    @abstractmethod
    def spec(self) -> ConditioningSpec:
        """Return the shape of the conditioning; reads at most a config.json."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.TextEncoder:
        """Make the encoder."""


class AutoencoderConfig(ComponentConfig):
    """Turns pictures into latents and back (2)."""

    kind: ClassVar[str] = "autoencoder"

    @abstractmethod
    def spec(self) -> LatentSpec:
        """Return the shape of the latents; reads at most a config.json."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Autoencoder:
        """Make the autoencoder."""


class BackboneConfig(ComponentConfig):
    """Predicts the noise in a latent (2)."""

    kind: ClassVar[str] = "backbone"

    def misfit(self, conditioning: ConditioningSpec, latents: LatentSpec) -> str | None:
        """Say why this backbone cannot take such inputs, or return None; reads at most a config.json."""
        return None

    @abstractmethod
    def build(self, ctx: BuildContext, *, conditioning: ConditioningSpec, latents: LatentSpec) -> protocols.Backbone:
        """Make the backbone for inputs of these shapes. Raises WeightsError when its weights are of other shapes."""


class NoiseScheduleConfig(ComponentConfig):
    """How fast a picture turns to noise (2.2.2)."""

    kind: ClassVar[str] = "noise_schedule"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.NoiseSchedule:
        """Make the schedule."""


class SolverConfig(ComponentConfig):
    """Carries noise to latents along a schedule."""

    kind: ClassVar[str] = "solver"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Solver:
        """Make the solver."""


class GuidanceConfig(ComponentConfig):
    """Steers a denoiser towards the prompt."""

    kind: ClassVar[str] = "guidance"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Guidance:
        """Make the guidance."""


class AdapterConfig(ComponentConfig):
    """Adds an ability to a backbone (4)."""

    kind: ClassVar[str] = "adapter"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Adapter:
        """Make the adapter."""


class CaptionerConfig(ComponentConfig):
    """Describes pictures in words (2.1.2)."""

    kind: ClassVar[str] = "captioner"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Captioner:
        """Make the captioner."""


class CaptionMixConfig(ComponentConfig):
    """Chooses among the captions of a sample (2.1.2)."""

    kind: ClassVar[str] = "caption_mix"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.CaptionMix:
        """Make the mix."""


class DataSourceConfig(ComponentConfig):
    """Yields training batches."""

    kind: ClassVar[str] = "data_source"

    @abstractmethod
    def ports(self) -> frozenset[Literal["images", "latents", "captions", "conditioning"]]:
        """Return which fields of a Batch this source fills, besides records, size and weight."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.DataSource:
        """Open the data."""


class DataSinkConfig(ComponentConfig):
    """Stores samples for later."""

    kind: ClassVar[str] = "data_sink"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.DataSink:
        """Make the sink; nothing is written yet."""


class SampleFilterConfig(ComponentConfig):
    """Decides which samples are used (2.2.1)."""

    kind: ClassVar[str] = "sample_filter"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.SampleFilter:
        """Make the filter."""


class PromptSetConfig(ComponentConfig):
    """Lists the prompts of an evaluation (3.1)."""

    kind: ClassVar[str] = "prompt_set"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.PromptSet:
        """Make the set."""


class MetricConfig(ComponentConfig):
    """Scores generated pictures (3)."""

    kind: ClassVar[str] = "metric"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Metric:
        """Make the metric, with nothing taken in yet."""


class AttentionConfig(ComponentConfig):
    """Scaled dot-product attention: an op of the backbone."""

    kind: ClassVar[str] = "attention"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Attention:
        """Make the op."""


class GroupNormSiLUConfig(ComponentConfig):
    """Group norm followed by SiLU: an op of the backbone."""

    kind: ClassVar[str] = "group_norm_silu"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.GroupNormSiLU:
        """Make the op."""


class GEGLUConfig(ComponentConfig):
    """The gated activation of the feed-forward layers: an op of the backbone."""

    kind: ClassVar[str] = "geglu"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.GEGLU:
        """Make the op."""


class ObserverConfig(ComponentConfig):
    """Watches a run: logs, pictures."""

    kind: ClassVar[str] = "observer"

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Observer:
        """Make the observer; it writes below `ctx.out`."""


class RecipeConfig(ComponentConfig):
    """A piece of work: its fields are other components, and a YAML file is one written down."""

    kind: ClassVar[str] = "recipe"

    device: str = "cpu"
    """Where the command line builds it, by torch's name: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """The floating type the command line builds it in."""

    @abstractmethod
    def graphs(self) -> Mapping[str, Graph]:
        """Return the graphs the job would run, by name, without building a part."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> protocols.Job:
        """Build the parts the graphs need and return the job that runs them."""
