"""Text conditioning in the merged form: rows of tokens that say the same are kept once, with their count.

An element of a `text_KEY` column, for a form of `width` D and `pooled` P in float16 or float32, all little-endian:

    tokens    n * D numbers, row after row
    pooled    P numbers
    key_bias  n times float32

n follows from the length. Neighbouring rows whose bits are equal are one row, whose key bias is the logarithm of the
sum of the exponentials of theirs (the log of their count, where they had none): attention over the merged rows is
attention over all of them, since equal keys get equal scores and their values are equal. Rows of key bias minus
infinity are never attended and are left out. The 256 rows of ChatGLM3, most of them padding, become n + 1 (2.1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kolors_kernel.errors import DataError
from kolors_kernel.values import Conditioning
from kolors_zarr.store.manifest import TextForm

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
New = Callable[[str, tuple[int, ...], np.dtype[Any]], Array]
"""(name, shape, dtype) -> an array that holds anything."""
_BITS = {"float16": "<u2", "float32": "<u4"}


class Texts(NamedTuple):
    """Conditioning of a batch in numpy: tokens [B, L, D], pooled [B, P], key_bias float32 [B, L] or None."""

    tokens: Array
    pooled: Array
    key_bias: NDArray[np.float32] | None


def form_of(conditioning: Conditioning) -> TextForm:
    """Return how a conditioning is stored. Raises ValueError for one that a store cannot keep."""
    dtypes = {str(each.dtype).removeprefix("torch.") for each in (conditioning.tokens, conditioning.pooled)}
    dtype = dtypes.pop()
    if dtypes or dtype not in _BITS:
        found = " and ".join(sorted({dtype, *dtypes}))
        raise ValueError(f"a store keeps conditioning in float16 or in float32, not {found}; convert before writing")
    if conditioning.extra:
        raise ValueError(f"a store does not keep the extra {sorted(conditioning.extra)} of a conditioning")
    return TextForm.model_validate(
        {"dtype": dtype, "width": conditioning.tokens.shape[-1], "pooled": conditioning.pooled.shape[-1]}
    )


def pack(conditioning: Conditioning) -> bytes:
    """Return the element of a conditioning with a batch of one, its equal neighbours merged.

    Raises ValueError when it is of several, or of a dtype that a store does not keep.
    """
    dtype = form_of(conditioning).dtype
    if len(conditioning.tokens) != 1 or len(conditioning.pooled) != 1:
        raise ValueError(f"conditioning is stored one by one, not in a batch of {len(conditioning.tokens)}")
    tokens, pooled = _array(conditioning.tokens)[0], _array(conditioning.pooled)[0]
    bias = np.zeros(len(tokens))
    if conditioning.key_bias is not None:
        bias = _array(conditioning.key_bias)[0].astype(np.float64)
    attended = ~np.isneginf(bias)
    if not attended.any():
        raise ValueError("conditioning has a key bias of minus infinity in every row; nothing of it is ever attended")
    tokens, bias = tokens[attended], bias[attended]
    bits = tokens.view(_BITS[dtype])
    starts = np.flatnonzero(np.append(True, (bits[1:] != bits[:-1]).any(axis=1)))
    merged = np.logaddexp.reduceat(bias, starts)
    return b"".join(each.tobytes() for each in (tokens[starts], pooled, merged.astype("<f4")))


def unpack_arrays(elements: Sequence[bytes | memoryview], form: TextForm, new: New) -> Texts:
    """Return the conditioning of a batch, one element a row, in the stored dtype, in arrays that `new` gives.

    Rows beyond a sample's are zeros with key bias -inf. `key_bias` is None when nothing was merged and nothing is
    padded. Raises DataError for an element that is not of the form.
    """
    dtype = np.dtype(form.dtype)
    counts = [_rows(element, form, dtype.itemsize) for element in elements]
    longest = max(counts, default=0)
    tokens = new("tokens", (len(elements), longest, form.width), dtype)
    pooled = new("pooled", (len(elements), form.pooled), dtype)
    bias = new("key_bias", (len(elements), longest), np.dtype(np.float32))
    for row, (element, count) in enumerate(zip(elements, counts, strict=True)):
        numbers = np.frombuffer(element, dtype, count * form.width + form.pooled)
        tokens[row, :count] = numbers[: count * form.width].reshape(count, form.width)
        tokens[row, count:] = 0
        pooled[row] = numbers[count * form.width :]
        bias[row, :count] = np.frombuffer(element, "<f4", count, numbers.nbytes)
        bias[row, count:] = -np.inf
    return Texts(tokens, pooled, bias if bias.any() else None)


def _rows(element: bytes | memoryview, form: TextForm, itemsize: int) -> int:
    count, rest = divmod(len(element) - form.pooled * itemsize, form.width * itemsize + 4)
    if count < 1 or rest:
        raise DataError(
            f"a conditioning of {len(element)} bytes is not of rows of {form.width} and a pooled vector of "
            f"{form.pooled} in {form.dtype}; restore or rebuild the store"
        )
    return count


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())
