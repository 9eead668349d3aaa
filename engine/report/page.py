"""The page: markup that cannot be forged by what is written on it, the style, the frame around the sections."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

VOID = frozenset({"img", "meta", "br"})


class Html(str):
    """Markup. Whatever else is put on the page is escaped."""

    __slots__ = ()


Content: TypeAlias = "str | int | float | Iterable[Content] | None"
"""What an element can hold: markup, text and numbers, and sequences of these; None is nothing."""


def tag(element: str, /, *content: Content, **attributes: str | int | float | None) -> Html:
    """An element. ``class_`` is its attribute class, other underscores are hyphens; what is None is left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if element in VOID:
        return Html(f"<{element}{written}>")
    return Html(f"<{element}{written}>{together(*content)}</{element}>")


def together(*content: Content) -> Html:
    """One after the other."""
    return Html("".join(_markup(each) for each in content))


def _markup(content: Content) -> str:
    if content is None:
        return ""
    if isinstance(content, Html):
        return content
    if isinstance(content, (str, int, float)):
        return html.escape(str(content), quote=False)
    return "".join(_markup(each) for each in content)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a heading to link to."""

    identity: str
    heading: str
    content: Html

    @property
    def html(self) -> Html:
        """As it stands on the page."""
        return tag("section", tag("h2", self.heading), self.content, id=self.identity)


def section(identity: str, heading: str, *content: Content) -> Section:
    """A part of the page."""
    return Section(identity=identity, heading=heading, content=together(*content))


def contents(sections: Iterable[Section]) -> Html:
    """Links to all of them."""
    return tag("nav", [tag("a", each.heading, href=f"#{each.identity}") for each in sections])


def note(*content: Content) -> Html:
    """How to read what stands above."""
    return tag("p", *content, class_="note")


def table(
    headings: Sequence[Content], rows: Iterable[Sequence[Content]], *, numbers: Iterable[int] = (), caption: str = ""
) -> Html:
    """A table that scrolls where it does not fit.

    Args:
        headings: of the columns.
        rows: the cells; the first of each row names it.
        numbers: columns that are set flush right.
        caption: for those who cannot see it.
    """
    flush = frozenset(numbers)

    def cell(name: str, column: int, content: Content, **attributes: str) -> Html:
        return tag(name, content, class_="number" if column in flush else None, **attributes)

    head = tag("tr", [cell("th", column, each, scope="col") for column, each in enumerate(headings)])
    body = [
        tag(
            "tr",
            [
                cell("td", column, each) if column else cell("th", column, each, scope="row")
                for column, each in enumerate(row)
            ],
        )
        for row in rows
    ]
    caption_html = tag("caption", caption) if caption else None
    return tag("div", tag("table", caption_html, tag("thead", head), tag("tbody", body)), class_="scroll", tabindex=0)


def swatch(colour: str) -> Html:
    """A spot of colour for a legend."""
    return tag("i", class_="swatch", style=f"background:{colour}")


def legend(entries: Iterable[tuple[str, Content]]) -> Html:
    """Colours and what they mean."""
    return tag("ul", [tag("li", swatch(colour), content) for colour, content in entries], class_="legend")


def page(title: str, *content: Content) -> str:
    """A whole document that needs nothing from anywhere."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *content)), lang="en") + "\n"


STYLE = """
:root {
  --paper: #fcfcfa; --card: #f2f2ee; --ink: #1d1f21; --faint: #5c6166; --line: #d9d9d3; --link: #0b5c94;
  --alive: #9fb4bd; --unwatched: #d5d5cf; --nodata: #8b8f93; --degraded: #f0c000; --dead: #d55e00;
  --good: #00795a; --bad: #b34700; --mark: #1d1f21; --trace: #0072b2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181a; --card: #212427; --ink: #e6e6e2; --faint: #a2a7ab; --line: #3a3e42; --link: #7cc4f5;
    --alive: #58717c; --unwatched: #33373b; --nodata: #85898d; --degraded: #f0c000; --dead: #ec7a20;
    --good: #35c39b; --bad: #ff9a55; --mark: #f4f4f0; --trace: #56b4e9;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto,
  "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
a { color: var(--link); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 0 0 .8rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
section { margin-top: 2.4rem; }
p { max-width: 46rem; margin: .5rem 0; }
.byline, .note, figcaption, caption { color: var(--faint); }
.byline { margin: 0; overflow-wrap: anywhere; }
.note, figcaption { font-size: .88rem; }
.verdict { font-size: 1.1rem; font-weight: 600; margin: 1.2rem 0 .4rem; padding-left: .7rem; border-left: 5px solid; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.story { margin: .3rem 0; padding-left: 1.2rem; max-width: 46rem; }
nav { font-size: .88rem; margin-top: 1.4rem; display: flex; flex-wrap: wrap; gap: .3rem 1rem; }
.facts { display: grid; grid-template-columns: repeat(4, 1fr); gap: .6rem; margin: 1.2rem 0 0; padding: 0; }
.facts div { background: var(--card); border-radius: 6px; padding: .6rem .75rem; }
.facts dt { font-size: .8rem; color: var(--faint); }
.facts dd { margin: 0; }
.facts b { display: block; font-size: 1.3rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.facts small { font-size: .8rem; color: var(--faint); }
.good { color: var(--good); } .bad { color: var(--bad); } .verdict { color: var(--ink); }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; vertical-align: top; border-bottom: 1px solid var(--line);
  font-weight: 400; }
thead th { color: var(--faint); white-space: nowrap; vertical-align: bottom; }
tbody th { min-width: 6.2rem; } td:last-child:not(.number) { min-width: 9rem; }
.number { text-align: right; white-space: nowrap; }
td .chart { min-width: 11rem; }
figure { margin: 1rem 0; }
figcaption { margin-top: .4rem; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; padding: 0; margin: .5rem 0;
  font-size: .85rem; }
.swatch { display: inline-block; width: .85em; height: .85em; margin-right: .4em; border: 1px solid var(--faint);
  border-radius: 2px; vertical-align: -.06em; }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.maps.beside { grid-template-columns: 2fr 1fr; }
.maps figure { margin: 0 0 1rem; }
.piece { position: relative; line-height: 0; margin-bottom: 3px;
  background: repeating-linear-gradient(45deg, var(--card) 0 4px, var(--line) 4px 6px); }
.piece img { width: 100%; height: auto; image-rendering: pixelated; }
.pieces.side { display: flex; gap: 3px; }
.pieces.side .piece { flex: 1; margin: 0; }
.mark { position: absolute; transform: translate(-50%, -50%); min-width: 1.45rem; height: 1.45rem; padding: 0 .25rem;
  border-radius: .75rem; border: 2px solid #000; outline: 1.5px solid #fff; color: #000; font: 700 .76rem/1.2rem
  system-ui, sans-serif; text-align: center; }
.mark.dot { min-width: .6rem; width: .6rem; height: .6rem; padding: 0; border-width: 1px; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); gap: .8rem; }
.frames figure { margin: 0; } .frames figcaption { overflow-wrap: anywhere; line-height: 1.3; }
.frames .piece { border-bottom: 6px solid; }
.lanes { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .35rem .7rem; align-items: center;
  font-size: .82rem; margin: 1rem 0 .4rem; }
.lanes > span { text-align: right; color: var(--faint); line-height: 1.15; }
.chart { position: relative; }
.chart svg { display: block; width: 100%; height: 100%; overflow: visible; }
.lane { height: 1.5rem; background: var(--card); overflow: hidden; }
.lane.slim { height: .45rem; background: none; }
.lane b { position: absolute; top: 0; height: 100%; container-type: inline-size; }
.lane b span { display: block; padding: 0 .3rem; overflow: hidden; white-space: nowrap; text-overflow: ellipsis;
  font: 600 .74rem/1.5rem system-ui, sans-serif; color: #000; }
@container (max-width: 2.6rem) { .lane b span { display: none; } }
.plot { height: 5.5rem; border-bottom: 1px solid var(--faint); }
.plot.tall { height: 11rem; }
.plot.spark { height: 2.1rem; }
.axis { position: relative; height: 1.3rem; font-size: .76rem; color: var(--faint); }
.axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.axis span:first-child { transform: none; } .axis span.last { transform: translateX(-100%); }
.ruler { position: absolute; top: 0; bottom: 0; border-left: 2px dashed var(--mark); }
.ruler span { position: absolute; left: .25rem; top: 0; font-size: .74rem; line-height: 1.2; background: var(--paper);
  padding: 0 .2rem; white-space: nowrap; }
.ruler.left span { left: auto; right: .25rem; }
.level { position: absolute; left: 0; right: 0; border-top: 1px dashed var(--mark); font-size: .72rem; line-height: 1; }
.level span { position: absolute; right: 0; bottom: 1px; background: var(--paper); padding: 0 .2rem; }
.bar { height: 1.5rem; display: flex; }
.bar i { display: block; height: 100%; }
svg line, svg path { vector-effect: non-scaling-stroke; }
svg rect { shape-rendering: crispEdges; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--link); }
dl.plain { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.2rem; font-size: .9rem;
  margin: 0; }
dl.plain dt { color: var(--faint); } dl.plain dd { margin: 0; overflow-wrap: anywhere; }
@media screen and (max-width: 44rem) { .maps.beside { grid-template-columns: 1fr; } }
@media screen and (max-width: 34rem) {
  main { padding: 1.2rem .9rem 3rem; }
  .facts { grid-template-columns: repeat(2, 1fr); }
  dl.plain { grid-template-columns: 1fr; gap: 0; } dl.plain dd { margin-bottom: .45rem; }
  .mark { transform: translate(-50%, -50%) scale(.72); }
}
@media print {
  :root { --paper: #fff; --card: #f4f4f0; --ink: #000; --faint: #444; --line: #ccc; --link: #000; --alive: #9fb4bd;
    --unwatched: #d5d5cf; --nodata: #8b8f93; --degraded: #f0c000; --dead: #d55e00; --mark: #000; --trace: #0072b2; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 12px; } main { max-width: none; padding: 0; } nav { display: none; }
  figure, tr, .lanes, .facts div { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; } a { text-decoration: none; }
}
"""
