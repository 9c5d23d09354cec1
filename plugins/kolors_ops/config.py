"""The ops a recipe can name, one module per kind, one class per implementation; and the recipe that tunes them."""

from __future__ import annotations

from kolors_kernel.component import ComponentConfig
from kolors_ops.add_layer_norm import config as add_layer_norm
from kolors_ops.attention import config as attention
from kolors_ops.geglu import config as geglu
from kolors_ops.group_norm_silu import config as group_norm_silu
from kolors_ops.quantized_linear import config as quantized_linear
from kolors_ops.rms_norm import config as rms_norm
from kolors_ops.rotary import config as rotary
from kolors_ops.tuning import config as tuning

COMPONENTS: tuple[type[ComponentConfig], ...] = (
    *attention.COMPONENTS,
    *group_norm_silu.COMPONENTS,
    *geglu.COMPONENTS,
    *add_layer_norm.COMPONENTS,
    *rms_norm.COMPONENTS,
    *rotary.COMPONENTS,
    *quantized_linear.COMPONENTS,
    *tuning.COMPONENTS,
)
"""What this plugin provides."""
