"""A page of HTML that needs nothing but a browser; the reports and the calibration page are made of it.

    page("Title", byline="of what, when", sections=[section("times", "Times", table(["stage", "ms"], rows))])

Beside this file lie ``page.css``, the style, and ``colours.css``, its colours, which the live map uses as well. Charts
are in :mod:`engine.contract.page.charts`. Text is escaped wherever it goes; markup comes from :func:`tag` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from engine.contract.page.markup import VOID, Content, tag, together

__all__ = ["COLOURS", "VOID", "Content", "Section", "legend", "note", "page", "section", "swatch", "table", "tag"]
__all__ += ["together"]

COLOURS, STYLE = (Path(__file__).with_name(name) for name in ("colours.css", "page.css"))
"""Custom properties of CSS, for light and dark screens and for print."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a heading to link to."""

    identity: str
    heading: str
    content: Markup


def section(identity: str, heading: str, *content: Content) -> Section:
    """A part of the page."""
    return Section(identity=identity, heading=heading, content=together(*content))


def note(*content: Content) -> Markup:
    """How to read what stands above."""
    return tag("p", *content, class_="note")


def swatch(colour: str) -> Markup:
    """A spot of colour for a legend."""
    return tag("i", class_="swatch", style=f"background:{colour}")


def table(headings: Sequence[Content], rows: Iterable[Sequence[Content]], *, numbers: Iterable[int] = ()) -> Markup:
    """A table that scrolls where it does not fit.

    Args:
        headings: of the columns.
        rows: the cells; the first of each row names it.
        numbers: columns that are set flush right.
    """
    flush = frozenset(numbers)

    def cells(element: str, row: Iterable[Content], scope: str | None, first: int = 0) -> list[Markup]:
        return [
            tag(element, content, scope=scope, class_="number" if column in flush else None)
            for column, content in enumerate(row, start=first)
        ]

    head = tag("tr", cells("th", headings, "col"))
    body = [tag("tr", cells("th", row[:1], "row"), cells("td", row[1:], None, first=1)) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll", tabindex=0)


def legend(entries: Iterable[tuple[str, Content]]) -> Markup:
    """Colours and what they mean."""
    return tag("ul", [tag("li", swatch(colour), content) for colour, content in entries], class_="legend")


def page(title: str, *, byline: Content, sections: Iterable[Section], lead: Content = None) -> str:
    """A whole document that needs nothing from anywhere.

    Args:
        title: of the window and of the page.
        byline: what it is about, when and by what it was made.
        sections: each gets a link at the top.
        lead: between the byline and these links: what a reader has to see first.
    """
    there = list(sections)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(COLOURS.read_text("utf-8") + STYLE.read_text("utf-8"))),
    )
    main = tag(
        "main",
        tag("h1", title),
        tag("p", byline, class_="byline"),
        lead,
        tag("nav", [tag("a", each.heading, href=f"#{each.identity}") for each in there]),
        [tag("section", tag("h2", each.heading), each.content, id=each.identity) for each in there],
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', main), lang='en')}\n"
