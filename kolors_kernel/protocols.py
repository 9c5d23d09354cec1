"""What the objects behind components can do: one Protocol per kind, checked by structure and by the contract tests.

Legend: B batch, L tokens, D conditioning width, P pooled width, C latent channels, f downscale, h = H/f, w = W/f,
N image tokens, A heads, E head width, G groups. `Supports...` are abilities that only some objects have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Generator, Tensor, nn

    from kolors_kernel.graph import Graph
    from kolors_kernel.values import Batch, Conditioning, Event, Language, Part, PromptCase, Sample, SampleRecord

Denoise: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""(x_t [B, C, h, w], t [B]) -> the noise epsilon in x_t [B, C, h, w]."""


class TextEncoder(Protocol):
    """Kind text_encoder."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Return tokens [B, L, D], pooled [B, P] and the key bias [B, L] or None, on the build device.

        Any text is encoded, the empty one too; text that does not fit is cut and a warning says so.
        Gradients flow where grad mode is on.
        """


class Autoencoder(Protocol):
    """Kind autoencoder."""

    def encode(self, images: Tensor, *, generator: Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> latents [B, C, h, w], multiplied by the scaling factor.

        Draws from the posterior with `generator`, or takes its mean without one. Raises ValueError unless H and W
        are multiples of f.
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Invert `encode`: latents [B, C, h, w] -> [B, 3, H, W], not clamped."""


class Backbone(Protocol):
    """Kind backbone."""

    module: nn.Module
    predicts: Literal["epsilon", "v"]

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, size: Tensor) -> Tensor:
        """noisy [B, C, h, w], timesteps [B], size [B, 6] (original h w, crop top left, target h w; pixels)
        -> [B, C, h, w], in the dtype of `noisy`, which has the given channels behind where there are any.
        """


class NoiseSchedule(Protocol):
    """Kind noise_schedule."""

    alpha_bar: Tensor
    """[T] float64 on the CPU, strictly decreasing, in [0, 1); only its last value may be 0."""

    def coefficients(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the signal and noise scale at each timestep [B], float64: x_t = signal * x_0 + noise * epsilon.

        Timesteps index the schedule from 0 to T - 1; fractions interpolate. -1 is the clean picture: (1, 0).
        """

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse latents [B, C, h, w] with unit noise to timesteps [B] (2.2.2), in the dtype of the latents."""


class Solver(Protocol):
    """Kind solver; the number of steps and their spacing live in its config."""

    def solve(
        self,
        denoise: Denoise,
        noise: Tensor,
        schedule: NoiseSchedule,
        *,
        generator: Generator | None = None,
        latents: Tensor | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Carry unit Gaussian noise [B, C, h, w] to latents [B, C, h, w], knowing the schedule only by the length of
        `alpha_bar` and by `coefficients`. Given `latents` [B, C, h, w], walk the last `strength` of the steps from
        them, diffused with the noise to where that part begins; strength in (0, 1].
        """


class Guidance(Protocol):
    """Kind guidance."""

    uses_negative: bool
    """Whether the denoiser handed in works on doubled batches: negative rows first, then positive ones."""

    def __call__(self, denoise: Denoise) -> Denoise:
        """Return a denoiser of B rows that steers `denoise` (2B rows if `uses_negative`, else B)."""


class Adapter(Protocol):
    """Kind adapter: LoRA, IP-Adapter, ControlNet; applied in recipe order."""

    def attach(self, backbone: Backbone) -> Backbone:
        """Return a backbone that also does this adapter's work; its inputs arrive in conditioning.extra[type]."""


class Captioner(Protocol):
    """Kind captioner."""

    def caption(self, images: Sequence[Image], language: Language) -> list[str]:
        """Describe each picture in one text of the language (2.1.2)."""


class CaptionMix(Protocol):
    """Kind caption_mix."""

    def choose(self, record: SampleRecord, *, seed: int, epoch: int) -> str:
        """Return the key of the caption a sample is trained with in this epoch, or NO_CAPTION when it is dropped; the
        same record, seed and epoch give the same key."""


class DataSource(Protocol):
    """Kind data_source."""

    def batches(self, *, seed: int, epoch: int, rank: int = 0, world: int = 1, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, the first `skip` left out at no cost; all order comes from (seed, epoch), so
        resuming is `skip`, and no loader state is ever stored."""


class SupportsParts(Protocol):
    """A data source that can also be read as it is stored, a part at a time and by several processes."""

    def parts(self, most: int) -> Sequence[Part]:
        """Return every sample once, in parts of at most `most` whose pictures have one shape; always the same parts."""

    def read(self, part: Part) -> Iterator[Batch]:
        """Yield the samples of a part in its order; `captions` is None, all of them are in the records."""


class DataSink(Protocol):
    """Kind data_sink: takes a set in parts, each whole or not at all, and shows nothing before it is published."""

    part_size: int
    """How many samples a part may have."""

    def missing(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Return the parts still to be written; raise DataError when another set is there, or a published one."""

    def write(self, part: Part, samples: Iterable[Sample]) -> None:
        """Store a part, in any process; to do it again changes nothing. All samples hold the same things."""

    def publish(self, parts: Sequence[Part]) -> int:
        """Show the parts to readers, all at once, and return how many samples there are."""


class SampleFilter(Protocol):
    """Kind sample_filter."""

    def reason_to_drop(self, record: SampleRecord) -> str | None:
        """Return why a sample is not used, or None to keep it."""


class PromptSet(Protocol):
    """Kind prompt_set."""

    def cases(self) -> Sequence[PromptCase]:
        """Return the prompts of an evaluation, always in the same order."""


class Metric(Protocol):
    """Kind metric."""

    def update(self, images: Tensor, cases: Sequence[PromptCase]) -> None:
        """Take in generated pictures [B, 3, H, W] in [-1, 1] and the cases they were drawn for."""

    def compute(self) -> Mapping[str, Any]:
        """Return the report over everything taken in: JSON-able, nested by part and language."""


class Op(Protocol):
    """What every op has beside its call. A call it refuses raises ValueError with the reason."""

    def refuses(self, *args: Any, **kwargs: Any) -> str | None:
        """Say why a call with these arguments cannot run here (device, dtype, head width), or return None."""


class Attention(Op, Protocol):
    """Kind attention."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q [B, A, N, E], k and v [B, A, L, E], additive mask that broadcasts to [B, A, N, L] or None -> [B, A, N, E].

        Scores are scaled by 1/sqrt(E).
        """


class GroupNormSiLU(Op, Protocol):
    """Kind group_norm_silu."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
    ) -> Tensor:
        """silu(group_norm(x)), or the norm alone, of x [B, C, ...] with weight and bias [C]; keeps shape, dtype and
        memory format.
        """


class GEGLU(Op, Protocol):
    """Kind geglu."""

    def __call__(self, x: Tensor) -> Tensor:
        """[..., 2F] -> [..., F]: the first half times the exact (erf) GELU of the second half."""


class AddLayerNorm(Op, Protocol):
    """Kind add_layer_norm."""

    def __call__(
        self, x: Tensor, added: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return x + added, or x itself, and its layer norm: [..., D] each, with weight and bias [D]; where no gradient
        is kept, the sum may take the memory of x."""


class RMSNorm(Op, Protocol):
    """Kind rms_norm."""

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return x / sqrt(mean(x^2) + eps) * weight over the last dimension: [..., D] with weight [D] -> [..., D]."""


class Rotary(Op, Protocol):
    """Kind rotary."""

    def __call__(self, x: Tensor, turns: Tensor) -> Tensor:
        """Turn neighbouring pairs of each head of x [R, A, E] by unit complex numbers turns [R, E / 2] -> [R, A, E]."""


class QuantizedLinear(Op, Protocol):
    """Kind quantized_linear."""

    def __call__(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., I] -> [..., O]: x times the rows of weight * scale, plus bias [O]. weight is int8 [O, I], or of 4 bits
        [O, I / 2], the even column in the high half of a byte; scale [O], or [O, groups] for groups of columns."""


class Workers(Protocol):
    """Kind workers."""

    def map(self, make: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Yield each item with what a worker made of it, as they finish; `make`, which can be pickled as the items
        can, is called once in each worker and returns the function."""


class Observer(Protocol):
    """Kind observer."""

    def on(self, event: Event) -> None:
        """Take note of one event of the run."""


class Job(Protocol):
    """What a recipe builds."""

    graphs: Mapping[str, Graph]

    def run(self) -> Mapping[str, float]:
        """Do the work and return its figures by name."""
