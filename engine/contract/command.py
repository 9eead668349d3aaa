"""The parser of a command, under the name by which it was called: its module's, or one of ``gemmnet``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_name: ContextVar[str | None] = ContextVar("command name", default=None)


@contextmanager
def called(name: str) -> Iterator[None]:
    """Parsers made inside are called ``name``, such as ``gemmnet run``."""
    token = _name.set(name)
    try:
        yield
    finally:
        _name.reset(token)


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser without options yet.

    Args:
        module: what follows ``python -m``.
        description: shown as it is, line by line; where the command was called by another name, its examples are too.
    """
    by_module = f"python -m {module}"
    name = _name.get() or by_module
    return argparse.ArgumentParser(
        prog=name,
        description=(description or "").replace(by_module, name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
