"""What torch.compile would make of group norm and SiLU on a GPU: tried, and why it cannot."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.aot.peers.shapes import EPS, GROUPS, norms


def refusal() -> str | None:
    """Have Inductor compile the U-Net's first group norm for CUDA, on tensors that are not there; return what it says.

    None: it compiled, and its kernels could be looked at.
    """
    from torch._inductor import compile as compile_graph
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    shape = norms()[0]

    def normed(x: Tensor, weight: Tensor) -> tuple[Tensor]:
        return (F.silu(F.group_norm(x, GROUPS, weight, weight, EPS)),)

    try:
        with FakeTensorMode():
            size = (shape.batch, shape.channels, shape.side, shape.side)
            x = torch.empty(size, device="cuda", dtype=torch.bfloat16)
            inputs = (x, x.new_empty(shape.channels))
            compile_graph(make_fx(normed)(*inputs), list(inputs))
    except (RuntimeError, AssertionError) as error:
        return f"Inductor: {str(error).strip().splitlines()[0]}"
    return None
