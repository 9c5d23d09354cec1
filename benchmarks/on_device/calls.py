"""Which calls of the ops are made on a GPU: at every shape of the nets, and at small and odd ones to see them right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kolors_ops.trials import Trial

from benchmarks.shapes import TEXTS, UNETS

ROWS = (24, 96, 1024)
"""What layers of integers see: the tokens of a prompt, of a good one, and of several texts at once."""
ODD: tuple[Trial, ...] = (
    *(Trial("attention", (1, 2, 130, 256, width)) for width in (40, 64, 80, 128)),
    Trial("attention", (2, 3, 257, 77, 64)),
    Trial("attention", (2, 3, 257, 77, 64), "bias"),
    Trial("attention", (1, 1, 1, 1, 64)),
    *(
        Trial("group_norm_silu", shape, form)
        for shape in ((2, 64, 5, 3), (1, 960, 17, 13), (2, 320, 32, 32))
        for form in ("", "channels_last", "no silu")
    ),
    Trial("geglu", (1, 1, 128)),
    Trial("geglu", (2, 3, 2050)),
    *(Trial("add_layer_norm", shape, form) for shape in ((2, 77, 640), (3, 5, 96)) for form in ("", "alone")),
    Trial("rms_norm", (5, 4096)),
    Trial("rms_norm", (3, 96)),
    Trial("rotary", (5, 3, 16)),
    *(
        Trial("quantized_linear", shape, form)
        for shape in ((5, 192, 77), (2, 64, 77), (130, 128, 130))
        for form in ("8 bits", "4 bits", "4 bits by 64", "8 bits bias", "4 bits by 64 bias")
    ),
)
"""One block and less, ragged ends, groups of 2 to 80 channels, each memory format, each optional argument."""


def of_nets(names: Sequence[str], kinds: Sequence[str]) -> dict[str, list[Trial]]:
    """Return by net the calls of these kinds that a forward makes; attention to text with and without a key bias."""
    return {name: [trial for trial in _of_net(name) if trial.kind in kinds] for name in names}


def _of_net(name: str) -> Iterator[Trial]:
    unet, text = UNETS[name], TEXTS[name]
    for shape, calls in unet.attention().items():
        yield Trial("attention", shape, calls=calls)
        if shape[3] == unet.text_tokens:
            yield Trial("attention", shape, "bias", calls)
    for norm, calls in unet.group_norm_silu().items():
        for form in ("", "channels_last"):
            yield Trial("group_norm_silu", norm, form, calls)
    for kind, found in (
        ("geglu", unet.geglu()),
        ("add_layer_norm", unet.add_layer_norm()),
        ("rms_norm", text.rms_norm()),
        ("rotary", text.rotary()),
    ):
        for rows, calls in found.items():
            yield Trial(kind, rows, calls=calls)
    for tokens in ROWS:
        for (*layer, biased), calls in replace(text, rows=tokens).linear().items():
            for form in ("8 bits", "4 bits by 64"):
                yield Trial("quantized_linear", tuple(layer), form + " bias" * biased, calls)


def to_check(nets: Sequence[str], kinds: Sequence[str]) -> list[Trial]:
    """Return the calls that are looked at beside float64: the odd ones, then each one of the nets once."""
    odd = [trial for trial in ODD if trial.kind in kinds]
    found = [trial.to_judge() for trials in of_nets(nets, kinds).values() for trial in trials]
    return list(dict.fromkeys([*odd, *(replace(trial, calls=1) for trial in found)]))
