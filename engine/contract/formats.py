"""Foreign formats, each read by one function: JSON, TOML, CSV and numpy archives become values or one error.

A parser fails in more ways than its documentation lists: bytes that are no UTF-8, nesting beyond Python's stack,
numbers beyond the processor's, archives that claim terabytes. Here all of them are :class:`MalformedError`, a
``ValueError`` whose message is one line; callers say what that means for the file at hand. ``tests/test_formats.py``
walks the source and finds no parser outside the modules that are meant to hold one.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from engine.contract.errors import one_line

Value = TypeVar("Value")

TEXT_LIMIT_BYTES = 256 << 20
"""More than any text this project writes; a file that claims more is not read."""


class MalformedError(ValueError):
    """Content that is not what its format promises; the message is one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class MismatchError(MalformedError):
    """Content that is of its format, but not of the type that is expected."""


def read_file(path: Path, limit_bytes: int = TEXT_LIMIT_BYTES) -> bytes:
    """The content of a regular file: neither a pipe nor a device is waited for.

    Raises:
        OSError: it cannot be read.
        MalformedError: it is no regular file, or longer than ``limit_bytes``.
    """
    with open_regular(path) as stream:
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise MalformedError(f"it is longer than {limit_bytes} bytes")
    return content


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading.

    Raises:
        OSError: it cannot be opened.
        MalformedError: it is a folder, a pipe, a socket or a device; none of them is waited for.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a NUL in the name
        raise MalformedError(f"its name cannot be one: {error}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise MalformedError("it is not a regular file")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def from_json(content: bytes | str, of: type[Value]) -> Value:
    """JSON as a value of a type; ``from_json(content, object)`` takes any.

    Raises:
        MalformedError: it is no JSON, or not of that type.
    """
    try:
        return msgspec.json.decode(content, type=of)
    except msgspec.ValidationError as error:
        raise MismatchError(str(error)) from error
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise MalformedError(str(error)) from error
    except RecursionError as error:
        raise MalformedError("it is nested too deeply") from error


def from_toml(content: bytes, of: type[Value]) -> Value:
    """TOML as a value of a type.

    Raises:
        MalformedError: it is no TOML in UTF-8, or not of that type.
    """
    try:
        return from_builtins(tomllib.loads(content.decode()), of)
    except UnicodeDecodeError as error:
        raise MalformedError(f"TOML is text in UTF-8, this is not ({error}): save it as UTF-8") from error
    except RecursionError as error:
        raise MalformedError("it is nested too deeply") from error
    except (ValueError, OverflowError) as error:
        raise MalformedError(str(error)) from error


def from_builtins(value: object, of: type[Value]) -> Value:
    """Dictionaries, lists and numbers as a value of a type.

    Raises:
        MalformedError: they are not of that type.
    """
    try:
        return msgspec.convert(value, type=of)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise MalformedError(str(error)) from error
    except RecursionError as error:
        raise MalformedError("it is nested too deeply") from error


def from_csv(content: BinaryIO, columns: Sequence[str], *, others: bool = False) -> Iterator[dict[str, str]]:
    """The rows of a CSV with the head line ``columns``, one at a time.

    Args:
        content: the file.
        columns: that it has.
        others: it may have others as well, and in any order.

    Raises:
        MalformedError: it is no text in UTF-8, lacks a column, has another head line, or a row of another length.
    """
    for line, row in csv_rows(content, columns, others=others):
        if isinstance(row, str):
            raise MalformedError(f"line {line} {row}")
        yield row


def csv_rows(
    content: BinaryIO, columns: Sequence[str], *, others: bool = False
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """As :func:`from_csv`, but a row of another length does not end it.

    Yields:
        The number of a line, and its row or what is wrong with it.
    """
    try:
        reader = csv.reader(io.TextIOWrapper(content, encoding="utf-8", newline=""))
        head = next(reader, [])
        if not set(columns) <= set(head) if others else head != list(columns):
            rule = "have" if others else "begin with"
            raise MalformedError(f"it must {rule} the columns {', '.join(columns)}; found {', '.join(head)}")
        for fields in reader:
            if len(fields) == len(head):
                yield reader.line_num, dict(zip(head, fields, strict=True))
            elif fields:  # a line without any is blank, and no row for csv.DictReader either
                yield reader.line_num, f"has {len(fields)} fields, not {len(head)}"
    except UnicodeDecodeError as error:
        raise MalformedError(f"CSV is text in UTF-8, this is not ({error})") from error
    except csv.Error as error:
        raise MalformedError(str(error)) from error


def from_npz(content: BinaryIO, arrays: Mapping[str, tuple[DTypeLike, tuple[int, ...]]]) -> dict[str, NDArray[Any]]:
    """Named arrays of a numpy archive, each of the dtype and shape that is expected.

    No more is unpacked than the shapes take, whatever the archive claims, and nothing is unpickled.

    Args:
        content: a seekable file.
        arrays: dtype and shape by name.

    Raises:
        MalformedError: it is no such archive, an array is missing, or one has another dtype or shape.
    """
    found: dict[str, NDArray[Any]] = {}
    name = ""
    try:
        with zipfile.ZipFile(content) as archive:
            for name, (dtype, shape) in arrays.items():
                with archive.open(f"{name}.npy") as member:
                    found[name] = _array(member, np.dtype(dtype), shape)
    except KeyError as error:
        raise MalformedError(f"it lacks the array {name}") from error
    except MalformedError as error:
        raise MalformedError(f"its array {name} {error}") from error
    # zipfile and zlib have a dozen ways to fail, with no class in common
    except Exception as error:
        raise MalformedError(f"it is no numpy archive, or a damaged one ({type(error).__name__}: {error})") from error
    return found


def _array(member: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    version = np.lib.format.read_magic(member)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    found_shape, fortran, found_dtype = read_header(member)
    if (found_shape, found_dtype, fortran) != (shape, dtype, False):
        raise MalformedError(f"must be {dtype} {list(shape)}, found {found_dtype} {list(found_shape)}")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    content = member.read(size)
    if len(content) != size:
        raise MalformedError(f"ends after {len(content)} of {size} bytes")
    return np.frombuffer(content, dtype).reshape(shape).copy()
