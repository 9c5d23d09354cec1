"""A step of the U-Net: a batch of two for guidance, 30 and 2 real tokens of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from benchmarks.peers.contest import EAGER, EXACT, Contest, Unavailable, difference, gflop, in_turns
from benchmarks.peers.text import SLOTS, merged, padded

if TYPE_CHECKING:
    from torch import Tensor

    Step = Callable[[], Tensor]  # -> [2, 4, h, w]

SIDES = {"tiny": 8, "small": 32, "full": 64}
TEXT_WIDTHS = {"tiny": 32, "small": 256, "full": 4096}
"""Of the rows and of the pooled vector, before the projection inside the net."""
_SHARED = {
    "layers_per_block": 2,
    "use_linear_projection": True,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
}
_EVERYWHERE = {"down_block_types": ("CrossAttnDownBlock2D",) * 3, "up_block_types": ("CrossAttnUpBlock2D",) * 3}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {
        **_SHARED,
        **_EVERYWHERE,
        "block_out_channels": (32, 32, 64),
        "transformer_layers_per_block": (1, 1, 1),
        "attention_head_dim": (1, 1, 2),
        "cross_attention_dim": 32,
    },
    "small": {
        **_SHARED,
        **_EVERYWHERE,
        "block_out_channels": (64, 128, 256),
        "transformer_layers_per_block": (1, 2, 4),
        "attention_head_dim": (1, 2, 4),
        "cross_attention_dim": 256,
    },
    "full": {
        **_SHARED,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
    },
}
"""What diffusers' class is made with; full is the released net. Heads are counts in spite of the name."""

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


@contextmanager
def contest(size: str, dtype: str, *, openvino: bool, compiled: bool) -> Iterator[Contest]:
    """Predict once: diffusers on 256 rows of text, ours on the merged rows, both from one folder of weights."""
    import torch

    with TemporaryDirectory() as folder, torch.no_grad():
        save_peer(size, Path(folder), dtype="bfloat16" if size == "full" else "float32")
        inputs = _Inputs(size, dtype)
        ours = build_ours("sdxl_unet_openvino" if openvino else "sdxl_unet", folder, size, dtype)
        mine = inputs.ours(ours)
        ours_gflop = gflop(inputs.ours(build_ours("sdxl_unet", folder, size, dtype))) if openvino else gflop(mine)
        if hasattr(ours, "freeze"):
            ours.freeze()
        net = load_peer(folder, dtype)
        eager = inputs.peer(net)
        peer_gflop, found = gflop(eager), eager()
        exactly = found
        if dtype == "bfloat16" and size != "full":
            exactly = _Inputs(size, "float32").peer(load_peer(folder, "float32"))()
        theirs = difference(found, exactly)
        peers, unavailable = _best_peers(inputs, net, folder, openvino=openvino, compiled=compiled)
        figures = {"error_float32": difference(mine(), exactly), "peer_error_float32": theirs}
        yield Contest(
            ours_name="sdxl_unet_openvino" if openvino else "sdxl_unet",
            run=in_turns({"ours": mine, EAGER: eager, **peers}),
            error=lambda: difference(mine(), found),
            limit=EXACT if dtype == "float32" else 3 * theirs or 0.05,
            gflop=(ours_gflop, peer_gflop),
            dtype=dtype,
            figures=figures if size != "full" else {},
            unavailable=unavailable,
        )


class _Inputs:
    """What both sides are given, each in its form."""

    def __init__(self, size: str, dtype: str) -> None:
        import torch

        side, width, kind = SIDES[size], TEXT_WIDTHS[size], getattr(torch, dtype)
        draw = torch.Generator().manual_seed(1)
        self.noisy = torch.randn(2, 4, side, side, generator=draw).to(kind)
        self.timesteps = torch.tensor([500, 500])
        self.rows, self.pooled = padded(width, width, dtype)
        self.size = torch.tensor([[8 * side, 8 * side, 0, 0, 8 * side, 8 * side]] * 2, dtype=kind)

    def ours(self, backbone: Any) -> Step:
        from kolors_weights.precision import exact_onednn

        conditioning = merged(self.rows, self.pooled)

        def step() -> Tensor:
            with exact_onednn():
                found: Tensor = backbone.predict(self.noisy, self.timesteps, conditioning, self.size)
            return found

        return step

    def peer(self, net: Any) -> Step:
        def step() -> Tensor:
            found: Tensor = net(
                self.noisy,
                self.timesteps,
                encoder_hidden_states=self.rows,
                added_cond_kwargs={"text_embeds": self.pooled, "time_ids": self.size},
                return_dict=False,
            )[0]
            return found

        return step

    def tensors(self) -> tuple[Tensor, ...]:
        return self.noisy, self.timesteps, self.rows, self.pooled, self.size


def _best_peers(
    inputs: _Inputs, net: Any, folder: str, *, openvino: bool, compiled: bool
) -> tuple[dict[str, Step], dict[str, str]]:
    """Return what diffusers' users can have beside it as it comes, and why not all of it."""
    import torch

    from kolors_weights.precision import exact_onednn

    found: dict[str, Step] = {}
    dtype = str(inputs.noisy.dtype).removeprefix("torch.")
    if openvino:
        return {f"{EAGER}, openvino": _exported(inputs, load_peer(folder, "float32"), dtype)}, {}
    if dtype == "float32":
        by_layout = inputs.peer(load_peer(folder, dtype).to(memory_format=torch.channels_last))

        def tuned() -> Tensor:
            with exact_onednn():
                return by_layout()

        found[f"{EAGER}, oneDNN, channels_last"] = tuned
    if compiled:
        net = load_peer(folder, dtype).to(memory_format=torch.channels_last)
        found[f"{EAGER}, compiled, channels_last"] = inputs.peer(torch.compile(net))
        return found, {}
    return found, {f"{EAGER}, compiled, channels_last": "takes minutes; asked for by --compile"}


def _exported(inputs: _Inputs, net: Any, dtype: str) -> Step:
    """Return diffusers' float32 net exported to OpenVINO, which computes it on one thread in this dtype."""
    import torch
    from torch import nn

    try:
        import openvino  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise Unavailable("openvino is not installed") from error

    class Plain(nn.Module):
        """The net with its inputs in a row, which is what the export reads."""

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, noisy: Tensor, timesteps: Tensor, rows: Tensor, pooled: Tensor, size: Tensor) -> Tensor:
            found: Tensor = self.net(
                noisy, timesteps, rows, added_cond_kwargs={"text_embeds": pooled, "time_ids": size}, return_dict=False
            )[0]
            return found

    given = [t.float() if t.is_floating_point() else t for t in inputs.tensors()]
    exported = openvino.convert_model(Plain(), example_input=tuple(given))
    exported.reshape({index: list(tensor.shape) for index, tensor in enumerate(given)})
    hints = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": _HINTS[dtype]}
    compiled, arrays = openvino.compile_model(exported, "CPU", hints), [tensor.numpy() for tensor in given]
    return lambda: torch.from_numpy(compiled(arrays)[0])


def save_peer(size: str, folder: Path, *, dtype: str) -> None:
    """Write diffusers' net with random weights, made in their dtype so that the full one takes 5.2 GB."""
    import torch

    width = TEXT_WIDTHS[size]
    with torch.device("meta"):
        net = _peers_class()(
            sample_size=SIDES[size],
            encoder_hid_dim=width,
            projection_class_embeddings_input_dim=width + 6 * 256,
            **SETTINGS[size],
        ).to(getattr(torch, dtype))
    net.to_empty(device="cpu")
    draw = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5  # what torch draws from by itself
            for weight in module.parameters():
                torch.nn.init.uniform_(weight, -bound, bound, generator=draw)
        elif isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            module.reset_parameters()
    net.save_pretrained(folder)


def load_peer(folder: str, dtype: str) -> Any:
    """Return diffusers' net."""
    import torch

    return _peers_class().from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval()


def _peers_class() -> Any:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()  # it warns of what does not concern this net
    return diffusers.UNet2DConditionModel


def build_ours(name: str, folder: str, size: str, dtype: str) -> Any:
    """Build the backbone of this type on the weights in a folder. Raises Unavailable when there is no such type."""
    from kolors_kernel import BuildContext, discover
    from kolors_kernel.errors import KolorsError
    from kolors_kernel.values import ConditioningSpec, LatentSpec

    width = TEXT_WIDTHS[size]
    try:
        config = cast(Any, discover().find("backbone", name)).model_validate({"path": folder})
        return config.build(
            BuildContext(dtype=dtype),
            conditioning=ConditioningSpec(SLOTS, width, width),
            latents=LatentSpec(channels=4, downscale=8),
        )
    except (KolorsError, ValueError) as error:
        raise Unavailable(str(error)) from error
