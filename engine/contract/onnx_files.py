"""Which files an ONNX graph reads besides itself, told without an inference library.

A tensor may keep its values in another file, whose name stands in the graph as text: ``ExternalData`` of
https://onnx.ai/onnx/repo-docs/ExternalData.html. Such a name may lead anywhere on the machine, so that all of them have
to be known before a library opens the graph. The graph is a protocol buffer: numbered fields, of which the few that can
hold a tensor are followed (numbers from https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, wire format from
https://protobuf.dev/programming-guides/encoding/).
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.contract.formats import MalformedError

_MAX_DEPTH = 100
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}

_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""By kind of message, the fields to follow and the kind of message they hold."""


def external_files(graph: bytes) -> frozenset[str]:
    """Names of the files that an ONNX graph reads, relative to its own folder, as they stand in it.

    Args:
        graph: content of the ONNX file.

    Raises:
        MalformedError: it is no protocol buffer.
    """
    return frozenset(_locations(memoryview(graph), "model", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise MalformedError("it is nested too deeply")
    if kind == "entry":
        pairs = dict(_fields(message))
        if bytes(pairs.get(1, b"")) == b"location":
            yield bytes(pairs.get(2, b"")).decode(errors="replace")
        return
    inside = _INSIDE[kind]
    for number, content in _fields(message):
        if number in inside:
            yield from _locations(content, inside[number], depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each field that has a length; all others are passed over."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        wire = key & 7
        if wire == _LENGTH_DELIMITED:
            size, at = _varint(message, at)
            if at + size > end:
                raise MalformedError("it is no ONNX graph: a field reaches beyond its message")
            yield key >> 3, message[at : at + size]
            at += size
        elif wire == 0:
            _, at = _varint(message, at)
        elif wire in _FIXED_BYTES:
            at += _FIXED_BYTES[wire]
        else:
            raise MalformedError(f"it is no ONNX graph: a field has the type {wire}")
    if at > end:
        raise MalformedError("it is no ONNX graph: it ends within a field")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise MalformedError("it is no ONNX graph: a number does not end")
