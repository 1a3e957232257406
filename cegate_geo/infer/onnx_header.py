"""IR version and opset of an ONNX file, read without the onnx package.

Only the top level of the protobuf message `ModelProto` is walked (onnx.proto: field 1 ir_version, 8 opset_import); the
graph is skipped over, whatever its size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cegate_geo.errors import ModelError

IR_VERSION, OPSET_IMPORT = 1, 8
VARINT, BYTES = 0, 2
FIXED_LENGTH = {1: 8, 5: 4}
"""Bytes of the other wire types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxHeader:
    """Versions that an ONNX file was written with."""

    ir_version: int
    opset: int
    """Of the standard domain."""


def read_header(path: Path) -> OnnxHeader:
    """Read an ONNX file's versions.

    Raises:
        ModelError: If it is no ONNX file.
    """
    ir_version, opset = 0, 0
    try:
        with path.open("rb") as file:
            while (key := _varint(file)) is not None:
                field, kind = key >> 3, key & 7
                if kind == BYTES:
                    length = _required(file)
                    if field == OPSET_IMPORT:
                        opset = _opset(file, file.tell() + length) or opset
                    else:
                        file.seek(length, 1)
                elif kind == VARINT:
                    value = _required(file)
                    ir_version = value if field == IR_VERSION else ir_version
                else:
                    file.seek(FIXED_LENGTH[kind], 1)
    except (KeyError, ValueError, OSError) as error:
        raise ModelError(f"{path.name} is no ONNX file: {error}.", hint="Check the path and the download.") from error
    return OnnxHeader(ir_version=ir_version, opset=opset)


def _opset(file: BinaryIO, end: int) -> int:
    """Version in an OperatorSetIdProto (1 domain, 2 version), 0 for another domain than the standard one."""
    domain, version = b"", 0
    while file.tell() < end:
        key = _required(file)
        if key & 7 == BYTES:
            domain = file.read(_required(file))
        elif key & 7 == VARINT:
            version = _required(file)
        else:
            raise ValueError("damaged opset")
    return version if domain in (b"", b"ai.onnx") else 0


def _varint(file: BinaryIO) -> int | None:
    value, shift = 0, 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise ValueError("a number is too long")
    if shift:
        raise ValueError("it ends within a number")
    return None


def _required(file: BinaryIO) -> int:
    value = _varint(file)
    if value is None:
        raise ValueError("it ends within a field")
    return value
