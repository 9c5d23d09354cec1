"""Group norm and SiLU by torch's own two kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kolors_ops.group_norm_silu.reference import check_groups


class TorchGroupNormSiLU:
    """torch's group_norm, in half precision rounded to it where that is faster, then its silu."""

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
    ) -> Tensor:
        """silu(group_norm(x)), or the norm alone, of x [B, C, ...] with weight and bias [C].

        Raises ValueError unless `groups` divides C, and for a call it refuses.
        """
        if reason := self.refuses(x, weight, bias, groups, eps, silu=silu):
            raise ValueError(f"group_norm_silu 'torch' refuses: {reason}")
        check_groups(x, groups)
        inner = torch.float32 if _is_slow(x) else x.dtype
        normal = F.group_norm(x.to(inner), groups, weight.to(inner), bias.to(inner), eps)
        result = (F.silu(normal, inplace=not normal.requires_grad) if silu else normal).to(x.dtype)
        # Off the CPU, torch's group_norm gives a contiguous tensor whatever it got.
        return result.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else result

    def refuses(
        self, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, *, silu: bool = True
    ) -> str | None:
        """Say why this call cannot run here: parameters of a dtype torch does not mix with x's; or return None."""
        if weight.dtype == bias.dtype == x.dtype:
            return None
        half_on_cpu = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
        if half_on_cpu and weight.dtype == bias.dtype == torch.float32:
            return None
        return f"weight and bias are {weight.dtype} and {bias.dtype}, which torch does not mix with x of {x.dtype}"


def _is_slow(x: Tensor) -> bool:
    # For few pixels torch reads half precision one by one where channels are last: ten times slower than float32.
    half = x.dtype in (torch.bfloat16, torch.float16)
    return half and x.device.type == "cpu" and x[0, 0].numel() < 1024 and _is_channels_last(x)


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
