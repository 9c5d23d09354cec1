"""A sentencepiece model without a file: the 256 bytes."""

from __future__ import annotations

_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6  # sentencepiece's kinds of pieces
_BPE = 2


def byte_pieces() -> bytes:
    """Return a serialized sentencepiece model whose pieces are <unk>, <s>, </s> and the 256 bytes.

    For tests and for tiny models: any text becomes its UTF-8 bytes, so 256 slots hold 84 Chinese characters. The
    numbers are the fields of sentencepiece's ModelProto.
    """
    kinds = [("<unk>", _UNKNOWN), ("<s>", _CONTROL), ("</s>", _CONTROL)]
    kinds += [(f"<0x{value:02X}>", _BYTE) for value in range(256)]
    pieces = b"".join(_message(1, _message(1, name.encode()) + _number(3, kind)) for name, kind in kinds)
    byte_fallback = _number(35, 1)
    ids = _number(40, 0) + _number(41, 1) + _number(42, 2) + _number(43, (1 << 64) - 1)  # unk, bos, eos, no pad
    as_it_is = _message(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 0)  # spaces stay spaces
    return pieces + _message(2, _number(3, _BPE) + byte_fallback + ids) + _message(3, as_it_is)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
