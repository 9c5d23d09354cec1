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


class TextEncoderConfig(ComponentConfig, Builds["protocols.TextEncoder"], kind="text_encoder"):
    """Turns prompts into conditioning (2.1.1)."""

    @abstractmethod
    def spec(self) -> ConditioningSpec:
        """Return the shape of the conditioning; reads at most a config.json."""


class AutoencoderConfig(ComponentConfig, Builds["protocols.Autoencoder"], kind="autoencoder"):
    """Turns pictures into latents and back (2)."""

    @abstractmethod
    def spec(self) -> LatentSpec:
        """Return the shape of the latents; reads at most a config.json."""


class BackboneConfig(ComponentConfig, kind="backbone"):
    """Predicts the noise in a latent (2); `trains` is False where what is built has no gradients."""

    trains: ClassVar[bool] = True

    def misfit(self, conditioning: ConditioningSpec, latents: LatentSpec) -> str | None:
        """Say why this backbone cannot take such inputs, or return None; reads at most a config.json."""
        return None

    @abstractmethod
    def build(self, ctx: BuildContext, *, conditioning: ConditioningSpec, latents: LatentSpec) -> protocols.Backbone:
        """Make the backbone for inputs of these shapes. Raises WeightsError when its weights are of other shapes."""


class NoiseScheduleConfig(ComponentConfig, Builds["protocols.NoiseSchedule"], kind="noise_schedule"):
    """How fast a picture turns to noise (2.2.2)."""


class SolverConfig(ComponentConfig, Builds["protocols.Solver"], kind="solver"):
    """Carries noise to latents along a schedule."""


class GuidanceConfig(ComponentConfig, Builds["protocols.Guidance"], kind="guidance"):
    """Steers a denoiser towards the prompt."""


class AdapterConfig(ComponentConfig, Builds["protocols.Adapter"], kind="adapter"):
    """Adds an ability to a backbone (4)."""


class CaptionerConfig(ComponentConfig, Builds["protocols.Captioner"], kind="captioner"):
    """Describes pictures in words (2.1.2)."""


class CaptionMixConfig(ComponentConfig, Builds["protocols.CaptionMix"], kind="caption_mix"):
    """Chooses among the captions of a sample (2.1.2)."""


class DataSourceConfig(ComponentConfig, Builds["protocols.DataSource"], kind="data_source"):
    """Yields training batches."""

    @abstractmethod
    def ports(self) -> frozenset[Literal["images", "latents", "captions", "conditioning"]]:
        """Return which fields of a Batch this source fills, besides records, size and weight."""

    def picture_sizes(self) -> Sequence[tuple[int, int]]:
        """Return the heights and widths that the images of a batch may have; none where there are no images."""
        return ()


class DataSinkConfig(ComponentConfig, Builds["protocols.DataSink"], kind="data_sink"):
    """Stores samples for later."""


class SampleFilterConfig(ComponentConfig, Builds["protocols.SampleFilter"], kind="sample_filter"):
    """Decides which samples are used (2.2.1)."""


class PromptSetConfig(ComponentConfig, Builds["protocols.PromptSet"], kind="prompt_set"):
    """Lists the prompts of an evaluation (3.1)."""


class MetricConfig(ComponentConfig, Builds["protocols.Metric"], kind="metric"):
    """Scores generated pictures (3)."""


class AttentionConfig(ComponentConfig, Builds["protocols.Attention"], kind="attention"):
    """Scaled dot-product attention: an op of the backbone."""


class GroupNormSiLUConfig(ComponentConfig, Builds["protocols.GroupNormSiLU"], kind="group_norm_silu"):
    """Group norm, followed by SiLU or not: an op of the backbone."""


class GEGLUConfig(ComponentConfig, Builds["protocols.GEGLU"], kind="geglu"):
    """The gated activation of the feed-forward layers: an op of the backbone."""


class AddLayerNormConfig(ComponentConfig, Builds["protocols.AddLayerNorm"], kind="add_layer_norm"):
    """Layer norm of rows, to which others may be added first: an op of the backbone."""


class RMSNormConfig(ComponentConfig, Builds["protocols.RMSNorm"], kind="rms_norm"):
    """Division of rows by their root mean square: an op of the text encoder."""


class RotaryConfig(ComponentConfig, Builds["protocols.Rotary"], kind="rotary"):
    """The rotation of queries and keys by their position: an op of the text encoder."""


class QuantizedLinearConfig(ComponentConfig, Builds["protocols.QuantizedLinear"], kind="quantized_linear"):
    """A linear layer whose weight is integers of 8 or 4 bits: an op of the text encoder."""


class WorkersConfig(ComponentConfig, Builds["protocols.Workers"], kind="workers"):
    """Does independent pieces of work: here, in several processes, on several machines."""


class ObserverConfig(ComponentConfig, Builds["protocols.Observer"], kind="observer"):
    """Watches a run (logs, pictures); it writes below `ctx.out`."""


class RecipeConfig(ComponentConfig, Builds["protocols.Job"], kind="recipe"):
    """A piece of work: its fields are other components, and a YAML file is one written down."""

    device: str = "cpu"
    """Where the command line builds it, by torch's name: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """The floating type the command line builds it in."""

    @abstractmethod
    def graphs(self) -> Mapping[str, Graph]:
        """Return the graphs the job would run, by name, without building a part."""
