"""One config base class per kind: what a field of a recipe is annotated with, and what a component subclasses.

The object a `build` returns is described in `kolors_kernel.protocols`, under the kind's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

from kolors_kernel.component import BuildContext, ComponentConfig
from kolors_kernel.values import ConditioningSpec, LatentSpec

if TYPE_CHECKING:
    from kolors_kernel import protocols
    from kolors_kernel.graph import Graph

Built = TypeVar("Built", covariant=True)


class Builds(ABC, Generic[Built]):
    """What every kind has that is built from a context alone."""

    @abstractmethod
    def build(self, ctx: BuildContext) -> Built:
        """Make the object; this is where torch may be imported, and no sooner."""


class TextEncoderConfig(ComponentConfig, Builds["protocols.TextEncoder"]):
    """Turns prompts into conditioning (2.1.1)."""

    kind: ClassVar[str] = "text_encoder"

    @abstractmethod
    def spec(self) -> ConditioningSpec:
        """Return the shape of the conditioning; reads at most a config.json."""


class AutoencoderConfig(ComponentConfig, Builds["protocols.Autoencoder"]):
    """Turns pictures into latents and back (2)."""

    kind: ClassVar[str] = "autoencoder"

    @abstractmethod
    def spec(self) -> LatentSpec:
        """Return the shape of the latents; reads at most a config.json."""


class BackboneConfig(ComponentConfig):
    """Predicts the noise in a latent (2); `trains` is False where what is built has no gradients."""

    kind: ClassVar[str] = "backbone"
    trains: ClassVar[bool] = True

    def misfit(self, conditioning: ConditioningSpec, latents: LatentSpec) -> str | None:
        """Say why this backbone cannot take such inputs, or return None; reads at most a config.json."""
        return None

    @abstractmethod
    def build(self, ctx: BuildContext, *, conditioning: ConditioningSpec, latents: LatentSpec) -> protocols.Backbone:
        """Make the backbone for inputs of these shapes. Raises WeightsError when its weights are of other shapes."""


class NoiseScheduleConfig(ComponentConfig, Builds["protocols.NoiseSchedule"]):
    """How fast a picture turns to noise (2.2.2)."""

    kind: ClassVar[str] = "noise_schedule"


class SolverConfig(ComponentConfig, Builds["protocols.Solver"]):
    """Carries noise to latents along a schedule."""

    kind: ClassVar[str] = "solver"


class GuidanceConfig(ComponentConfig, Builds["protocols.Guidance"]):
    """Steers a denoiser towards the prompt."""

    kind: ClassVar[str] = "guidance"


class AdapterConfig(ComponentConfig, Builds["protocols.Adapter"]):
    """Adds an ability to a backbone (4)."""

    kind: ClassVar[str] = "adapter"


class CaptionerConfig(ComponentConfig, Builds["protocols.Captioner"]):
    """Describes pictures in words (2.1.2)."""

    kind: ClassVar[str] = "captioner"


class CaptionMixConfig(ComponentConfig, Builds["protocols.CaptionMix"]):
    """Chooses among the captions of a sample (2.1.2)."""

    kind: ClassVar[str] = "caption_mix"


class DataSourceConfig(ComponentConfig, Builds["protocols.DataSource"]):
    """Yields training batches."""

    kind: ClassVar[str] = "data_source"

    @abstractmethod
    def ports(self) -> frozenset[Literal["images", "latents", "captions", "conditioning"]]:
        """Return which fields of a Batch this source fills, besides records, size and weight."""

    def picture_sizes(self) -> Sequence[tuple[int, int]]:
        """Return the heights and widths that the images of a batch may have; none where there are no images."""
        return ()


class DataSinkConfig(ComponentConfig, Builds["protocols.DataSink"]):
    """Stores samples for later."""

    kind: ClassVar[str] = "data_sink"


class SampleFilterConfig(ComponentConfig, Builds["protocols.SampleFilter"]):
    """Decides which samples are used (2.2.1)."""

    kind: ClassVar[str] = "sample_filter"


class PromptSetConfig(ComponentConfig, Builds["protocols.PromptSet"]):
    """Lists the prompts of an evaluation (3.1)."""

    kind: ClassVar[str] = "prompt_set"


class MetricConfig(ComponentConfig, Builds["protocols.Metric"]):
    """Scores generated pictures (3)."""

    kind: ClassVar[str] = "metric"


class AttentionConfig(ComponentConfig, Builds["protocols.Attention"]):
    """Scaled dot-product attention: an op of the backbone."""

    kind: ClassVar[str] = "attention"


class GroupNormSiLUConfig(ComponentConfig, Builds["protocols.GroupNormSiLU"]):
    """Group norm followed by SiLU: an op of the backbone."""

    kind: ClassVar[str] = "group_norm_silu"


class GEGLUConfig(ComponentConfig, Builds["protocols.GEGLU"]):
    """The gated activation of the feed-forward layers: an op of the backbone."""

    kind: ClassVar[str] = "geglu"


class WorkersConfig(ComponentConfig, Builds["protocols.Workers"]):
    """Does independent pieces of work: here, in several processes, on several machines."""

    kind: ClassVar[str] = "workers"


class ObserverConfig(ComponentConfig, Builds["protocols.Observer"]):
    """Watches a run (logs, pictures); it writes below `ctx.out`."""

    kind: ClassVar[str] = "observer"


class RecipeConfig(ComponentConfig, Builds["protocols.Job"]):
    """A piece of work: its fields are other components, and a YAML file is one written down."""

    kind: ClassVar[str] = "recipe"

    device: str = "cpu"
    """Where the command line builds it, by torch's name: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """The floating type the command line builds it in."""

    @abstractmethod
    def graphs(self) -> Mapping[str, Graph]:
        """Return the graphs the job would run, by name, without building a part."""
