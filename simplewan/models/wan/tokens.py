"""The tokenizer that ComfyUI's text encoders carry: a SentencePiece model in a tensor. Imports transformers on use.

The model is a protocol buffer: field 1 is a piece (1 text, 2 score as a 32-bit float), field 3 the normaliser (2 its
table of characters). It becomes the same T5Tokenizer that google/umt5-xxl's own files become.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def make_tokenizer(model: bytes) -> Any:
    """A T5Tokenizer of a SentencePiece model. Raises ValueError for what is none."""
    from transformers import T5Tokenizer

    vocabulary: list[tuple[str, float]] = []
    characters: bytes | None = None
    for number, value in _fields(model):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            vocabulary.append((bytes(piece[1]).decode(), struct.unpack("<f", piece.get(2, bytes(4)))[0]))
        elif number == 3 and isinstance(value, bytes):
            characters = dict(_fields(value)).get(2) or None
    if len(vocabulary) < 4 or [text for text, _ in vocabulary[:2]] != ["<pad>", "</s>"]:
        raise ValueError("its spiece_model is no vocabulary of UMT5")
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512, _spm_precompiled_charsmap=characters)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protocol buffer's message: number and value, bytes but for varints. Raises ValueError."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == _BYTES:
            length, place = _varint(message, place)
        else:
            length = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire, len(message))
        if place + length > len(message):
            raise ValueError("its spiece_model is damaged")
        yield number, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    number = shift = 0
    while place < len(message):
        byte = message[place]
        number |= (byte & 127) << shift
        shift, place = shift + 7, place + 1
        if byte < 128:
            return number, place
    raise ValueError("its spiece_model is damaged")
