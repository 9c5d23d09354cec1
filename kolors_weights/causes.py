"""Why weights do not fit: what people bring in place of what is wanted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

_MARKS = {
    "lora": "a LoRA, which is added to a model and is none itself",
    "controlnet_": "a ControlNet, which goes beside a U-Net and is none",
    "image_proj.": "an IP-Adapter, which is added to a model and is none itself",
    "ip_adapter.": "an IP-Adapter, which is added to a model and is none itself",
    "model.diffusion_model.": "a whole model in one file, which is not read here: its parts in folders are",
    "text_model.": "a CLIP text encoder, which SDXL has where Kolors has ChatGLM3",
    "embedding.word_embeddings.": "a ChatGLM text encoder",
    "decoder.conv_in.": "a VAE",
    "down_blocks.": "a U-Net",
}
"""What a key says about its file, the most telling first."""
_QUANTISED = ("weight_scale", ".absmax", ".quant_map", ".SCB", ".scales", ".qweight", "quant_state")
_CHANNELS = "conv_in.weight"
_PROJECTION = "encoder_hid_proj.weight"
_ADDED = "add_embedding.linear_1.weight"


def likeliest_cause(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return in words what `found` seems to be in place of `wanted`, or None where nothing is known."""
    causes = (_another_file, _quantised, _prefixed, _parts)
    return next((said for cause in causes if (said := cause(wanted, found))), None)


def _another_file(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    theirs, ours = _kind(found), _kind(wanted)
    return f"this is {theirs}" if theirs not in (None, ours) else None


def _kind(keys: Iterable[str]) -> str | None:
    keys = list(keys)
    return next((kind for mark, kind in _MARKS.items() if any(mark in f".{key}".lower() for key in keys)), None)


def _quantised(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    if any(mark in key for key in found if key not in wanted for mark in _QUANTISED):
        return "these weights are quantised in a form that is not known here; take those in float16 or float32"
    strange = {tensor.dtype for key, tensor in found.items() if key in wanted and wanted[key].is_floating_point()}
    small = sorted(str(dtype).removeprefix("torch.") for dtype in strange if dtype.itemsize == 1)
    if small:
        return f"these weights are quantised to {', '.join(small)}; take those in float16 or float32"
    return None


def _prefixed(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    for key in found:
        at = key.find(first) if (first := next(iter(wanted), "")) else -1
        if at > 0 and all(other.startswith(key[:at]) for other in found):
            return f"every key begins with {key[:at]!r}: the model was saved inside another"
    return None


def _parts(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Tell SDXL's U-Nets and Kolors' apart, and inpainting ones from others."""
    if _PROJECTION in wanted and _PROJECTION not in found:
        return "this is SDXL's U-Net, or one made for SDXL: Kolors' has a layer for ChatGLM3's text, encoder_hid_proj"
    if _PROJECTION in found and _PROJECTION not in wanted:
        return "this is Kolors' U-Net, with a layer for ChatGLM3's text, where SDXL's is wanted"
    for key, what in ((_PROJECTION, "text"), (_ADDED, "pooled text and sizes")):
        ours, theirs = _inputs(wanted, key), _inputs(found, key)
        if ours and theirs and ours != theirs:
            names = {2816: "SDXL", 5632: "Kolors", 4096: "Kolors"}
            made = f", as {names[theirs]} has it" if theirs in names else ""
            return f"the U-Net was made for another text encoder: its {what} is {theirs} wide{made}, not {ours}"
    ours, theirs = _inputs(wanted, _CHANNELS), _inputs(found, _CHANNELS)
    if ours and theirs and ours != theirs:
        kinds = {4: "a plain U-Net", 9: "an inpainting U-Net"}
        return f"this is {kinds.get(theirs, 'a U-Net')} of {theirs} input channels, where {ours} are wanted"
    return _widths(wanted, found)


def _widths(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Say that the model is another size where most of what both have differs in shape."""
    both = [key for key in wanted if key in found]
    differ = [key for key in both if wanted[key].shape != found[key].shape]
    if both and 2 * len(differ) > len(both):
        return "these weights are of a model of another size than config.json says"
    return None


def _inputs(state: Mapping[str, Tensor], key: str) -> int | None:
    tensor = state.get(key)
    return tensor.shape[1] if tensor is not None and tensor.ndim > 1 else None
