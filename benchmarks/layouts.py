"""Random weights in the two published layouts of Kolors, written a piece at a time: full size takes little memory.

Names, shapes and sizes of files are those of `Kwai-Kolors/Kolors` (encoder in pickle shards) and of
`Kwai-Kolors/Kolors-diffusers` (in safetensors shards), in float16. Left out is `Kolors`' U-Net in float32 (10.3 GB, and
the same numbers). What both have is written once and linked.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from kolors_chatglm3.architecture import RELEASED, Architecture
from kolors_chatglm3.model import ChatGLM3Model
from kolors_chatglm3.model import Ops as EncoderOps
from kolors_chatglm3.tokenizer import SPECIAL
from kolors_sdxl.architecture import UNetArchitecture, UNetShape, VAEArchitecture, unet_to_layout, vae_to_layout
from kolors_sdxl.blocks import Ops, run_plainly
from kolors_sdxl.unet import UNet
from kolors_sdxl.vae import VAE
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from kolors_kernel import BuildContext, discover
from kolors_weights.modules import without_weights

PICKLES, SAFETENSORS = "Kolors", "Kolors-diffusers"
"""The folders that the layouts are written into."""
TOKENIZER = Path(__file__).parents[1] / "plugins/kolors_demo/data/tokenizer.model"
"""The tokenizer that is written where the released one is not at hand."""
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.18.0.dev0",
    "beta_end": 0.014,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1100,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
_MODEL_INDEX = {
    "_class_name": "KolorsPipeline",
    "_diffusers_version": "0.30.0.dev0",
    "force_zeros_for_empty_prompt": False,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["kolors", "ChatGLMModel"],
    "tokenizer": ["kolors", "ChatGLMTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_STEM = "diffusion_pytorch_model.fp16"
_PERIOD = 1_048_573  # a prime, so that the rows of no matrix repeat; the numbers are drawn once


@dataclass(frozen=True)
class Size:
    """How large the written model is: the defaults are Kolors."""

    encoder: Architecture = RELEASED
    unet: UNetArchitecture = field(default_factory=UNetArchitecture)
    vae: VAEArchitecture = field(default_factory=VAEArchitecture)
    pickle_shard: int = 2 * 10**9
    safetensors_shard: int = 5 * 10**9


Shapes = Mapping[str, tuple[int, ...]]


def write(folder: Path, size: Size, *, tokenizer: Path = TOKENIZER) -> None:
    """Write both layouts into `folder`. Raises FileExistsError where one of them is there."""
    numbers = torch.randn(_PERIOD, generator=torch.Generator().manual_seed(0)).repeat(2)
    first, second = folder / PICKLES, folder / SAFETENSORS
    text, unet, vae = encoder_shapes(size.encoder), *picture_shapes(size)
    for place in (first, second):
        place.mkdir(parents=True)
        _write_tokenizer(place / "tokenizer", tokenizer)
        _write_tokenizer(place / "text_encoder", tokenizer)
        _write_json(place / "text_encoder/config.json", encoder_config(size.encoder))
        _write_json(place / "scheduler/scheduler_config.json", SCHEDULER)
        _write_json(place / "unet/config.json", unet_to_layout(_unet_shape(size)))
        _write_json(place / "vae/config.json", vae_to_layout(size.vae, scaling_factor=VAEArchitecture().scaling_factor))
        _write_json(place / "model_index.json", _MODEL_INDEX)
    pickles, shards = first / "text_encoder", second / "text_encoder"
    index = _write_shards(pickles, "pytorch_model-{}.bin", text, size.pickle_shard, numbers)
    _write_json(pickles / "pytorch_model.bin.index.json", index)
    index = _write_shards(shards, "model.fp16-{}.safetensors", text, size.safetensors_shard, numbers)
    _write_json(shards / "model.safetensors.index.fp16.json", index)  # fp16 stands elsewhere than in the shards' names
    for part, shapes in (("unet", unet), ("vae", vae)):
        _write_safetensors(first / part / f"{_STEM}.safetensors", shapes, numbers)
        os.link(first / part / f"{_STEM}.safetensors", second / part / f"{_STEM}.safetensors")


def encoder_ops() -> EncoderOps:
    """Return the operations that a text encoder chooses by itself."""
    ctx, found = BuildContext(), discover()
    made = (found.find(kind, "auto").tiny() for kind in ("rms_norm", "rotary"))
    return EncoderOps(*(op.build(ctx) for op in made))  # type: ignore[attr-defined]


def encoder_shapes(architecture: Architecture) -> Shapes:
    """Return the encoder's tensors in the order of the released files: with the norm and the head that nothing uses."""
    with without_weights():
        ours = _shapes(ChatGLM3Model(architecture, encoder_ops()))
    width, rows = architecture.hidden_size, architecture.padded_vocab_size or 0
    embedding = "embedding.word_embeddings.weight"
    return {
        embedding: ours[embedding],
        "rotary_pos_emb.inv_freq": (architecture.kv_channels // 4,),
        **ours,
        "encoder.final_layernorm.weight": (width,),
        "output_layer.weight": (rows, width),
    }


def encoder_config(architecture: Architecture) -> dict[str, Any]:
    """Return what the released config.json of the encoder says."""
    return {**architecture.released_form(), "post_layer_norm": True, "torch_dtype": "float16"}


def shards(shapes: Shapes, most: int) -> list[Shapes]:
    """Return the tensors in shards of at most so many bytes in float16, each filled before the next is begun."""
    found: list[dict[str, tuple[int, ...]]] = [{}]
    for key, shape in shapes.items():
        if found[-1] and 2 * sum(map(math.prod, [*found[-1].values(), shape])) > most:
            found.append({})
        found[-1][key] = shape
    return list(found)


def vocabulary(tokenizer: Path) -> int:
    """Return how many ids a tokenizer has, special ones included: the least that an encoder must embed."""
    pieces = SentencePieceProcessor(model_file=str(tokenizer))
    return int(pieces.get_piece_size()) + len(SPECIAL)


def _unet_shape(size: Size) -> UNetShape:
    channels = size.vae.latent_channels
    return UNetShape(size.unet, size.encoder.hidden_size, size.encoder.hidden_size, channels, channels)


def picture_shapes(size: Size) -> tuple[Shapes, Shapes]:
    """Return the tensors of the U-Net and of the VAE."""
    ctx, found = BuildContext(), discover()
    attention, norm, gate, add = (
        found.find(kind, "reference").tiny().build(ctx)  # type: ignore[attr-defined]
        for kind in ("attention", "group_norm_silu", "geglu", "add_layer_norm")
    )
    with without_weights():
        unet = UNet(_unet_shape(size), Ops(attention, norm, gate, add, run_plainly))
        return _shapes(unet), _shapes(VAE(size.vae, attention=attention, op=norm))


def _shapes(module: nn.Module) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def _write_shards(folder: Path, name: str, shapes: Shapes, most: int, numbers: Tensor) -> dict[str, Any]:
    """Write shards of at most so many bytes; return what their index says."""
    places, parts = {}, shards(shapes, most)
    for number, shard in enumerate(parts, 1):
        file = folder / name.format(f"{number:05d}-of-{len(parts):05d}")
        (_write_safetensors if file.suffix == ".safetensors" else _write_pickle)(file, shard, numbers)
        places.update(dict.fromkeys(shard, file.name))
    return {"metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))}, "weight_map": places}


def _write_safetensors(file: Path, shapes: Shapes, numbers: Tensor) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        header[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end := end + 2 * math.prod(shape)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for key, shape in shapes.items():
            _write_tensor(out, key, shape, numbers)


def _write_pickle(file: Path, shapes: Shapes, numbers: Tensor) -> None:
    """Write what torch.save does: first its structure, with holes for the numbers, then the numbers."""
    with FakeTensorMode():
        state = {key: torch.empty(shape, dtype=torch.float16) for key, shape in shapes.items()}
    with skip_data(materialize_fake_tensors=True):
        torch.save(state, file)
    with file.open("r+b") as out:
        for offset, (key, shape) in zip(_storages(file), shapes.items(), strict=True):
            out.seek(offset)
            _write_tensor(out, key, shape, numbers)


def _storages(file: Path) -> Iterator[int]:
    """Yield where the numbers of each tensor begin: they are entries of a zip file, called data/0 and so on."""
    with zipfile.ZipFile(file) as archive, file.open("rb") as content:
        starts = {entry.filename.partition("/")[2]: entry.header_offset for entry in archive.infolist()}
        for number in range(sum(name.startswith("data/") for name in starts)):
            content.seek(starts[f"data/{number}"] + 26)
            name, extra = struct.unpack("<HH", content.read(4))
            yield content.tell() + name + extra


def _write_tensor(out: IO[bytes], key: str, shape: tuple[int, ...], numbers: Tensor) -> None:
    """Write values of the size that an untrained model has, so that nothing overflows in any number of layers."""
    if len(shape) == 1:
        values = torch.zeros(shape) if key.endswith("bias") else torch.ones(shape)
        if key.endswith("inv_freq"):
            values = 10000 ** (-torch.arange(len(values)) / len(values))
        out.write(_bytes(values))
        return
    left = math.prod(shape)
    scale = 1.0 if key.endswith("embeddings.weight") else 0.5 / math.sqrt(left / shape[0])
    start = len(key) * 7919 % _PERIOD  # not every tensor begins alike
    block = _bytes(numbers[start : start + min(left, _PERIOD)] * scale)
    while left > 0:
        out.write(block[: 2 * left])
        left -= _PERIOD


def _bytes(values: Tensor) -> bytes:
    return values.half().numpy().tobytes()


def _write_tokenizer(folder: Path, model: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.model", "vocab.txt"):  # the released vocab.txt has the same bytes
        (folder / name).write_bytes(model.read_bytes())
    config = {"do_lower_case": False, "remove_space": False, "tokenizer_class": "ChatGLMTokenizer"}
    _write_json(folder / "tokenizer_config.json", {"name_or_path": "THUDM/chatglm3-6b-base", **config})


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
