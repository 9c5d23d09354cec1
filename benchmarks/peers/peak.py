"""What one thread of this machine can do: the rate of large matrix products through oneDNN."""

from __future__ import annotations

import time

SHAPES = ((2048, 1280, 1280), (8192, 640, 640))
TRIES = 5


def peak(dtype: str) -> float:
    """Return the best rate of a linear layer's product in 1e9 FLOP a second of CPU time."""
    import torch

    from kolors_weights.precision import exact_onednn

    kind, best = getattr(torch, dtype), 0.0
    with torch.no_grad(), exact_onednn():
        for rows, inputs, outputs in SHAPES:
            x, weight = torch.ones(rows, inputs, dtype=kind), torch.ones(outputs, inputs, dtype=kind)
            for _ in range(TRIES):
                start = time.process_time()
                torch.nn.functional.linear(x, weight)
                best = max(best, 2 * rows * inputs * outputs / (time.process_time() - start) / 1e9)
    return best
