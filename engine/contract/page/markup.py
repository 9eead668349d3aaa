"""HTML in which everything is escaped that is not markup: elements on MarkupSafe, so that no text can forge one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from markupsafe import Markup, escape

VOID = frozenset({"img", "meta", "br"})
"""Elements that have no end tag."""

Content: TypeAlias = "str | int | float | Iterable[Content] | None"
"""What an element can hold: markup, text and numbers, and sequences of these; None is nothing."""


def tag(element: str, /, *content: Content, **attributes: str | int | float | None) -> Markup:
    """An element. ``class_`` is its attribute class, other underscores are hyphens; what is None is left out."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value is not None
    )
    start = Markup("<{}{}>").format(element, written)
    return start if element in VOID else Markup("{}{}</{}>").format(start, together(*content), element)


def together(*content: Content) -> Markup:
    """One after the other."""
    return Markup("").join(_markup(each) for each in content)


def _markup(content: Content) -> Markup:
    if content is None:
        return Markup("")
    return escape(content) if isinstance(content, (str, int, float)) else together(*content)
