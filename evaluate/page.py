"""A self-contained HTML page: text, tables and plotly figures in one file that needs no network.

Every text passes `html.escape`; figures travel as plotly's JSON, whose escapes cannot end a script element.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Page:
    """Collects sections and renders them.

    Args:
        title: heading of the page.
        lead: lines below it.
    """

    def __init__(self, title: str, lead: Iterable[str]) -> None:
        self._title = title
        self._lead = list(lead)
        self._body: list[str] = []
        self._contents: list[tuple[str, str]] = []
        self._n_figures = 0

    def section(self, heading: str, text: str = "") -> None:
        """Begins a section; `text` says what there is to see."""
        anchor = f"s{len(self._contents) + 1}"
        self._contents.append((anchor, heading))
        self._body.append(f'<h2 id="{anchor}">{escape(heading)}</h2>')
        if text:
            self.text(text)

    def heading(self, text: str, *, tag: str = "", kind: str = "") -> None:
        """A heading within a section, with a coloured tag of kind "good" or "bad"."""
        mark = f' <span class="tag {escape(kind)}">{escape(tag)}</span>' if tag else ""
        self._body.append(f"<h3>{escape(text)}{mark}</h3>")

    def text(self, text: str) -> None:
        self._body.append(f"<p>{escape(text)}</p>")

    def figure(self, figure: go.Figure, *, description: str, wide: bool = False) -> None:
        """Adds a figure, drawn when it comes near the screen.

        Args:
            figure: its layout gives the height.
            description: for screen readers.
            wide: scroll sideways on narrow screens instead of shrinking.
        """
        self._n_figures += 1
        name = f"f{self._n_figures}"
        content = figure.to_json()
        kind = "figure wide" if wide else "figure"
        self._body.append(
            f'<div class="scroll"><div class="{kind}" data-figure="{name}" role="img"'
            f' aria-label="{escape(description)}" style="height:{int(figure.layout.height)}px"></div></div>'
            f'<script type="application/json" id="{name}">{content}</script>'
        )

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        strong: int | None = None,
        searchable: bool = False,
    ) -> None:
        """Adds a table of texts.

        Args:
            columns: headings; the first column is text, the others are numbers to the right.
            rows: cells.
            strong: place of the row to stress.
            searchable: put a field above it that hides the rows without the typed text.
        """
        if searchable:
            self._body.append(
                '<input class="search" type="search" placeholder="Find a row" aria-label="Find a row">'
            )
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        kinds = {strong: ' class="strong"'}
        lines = [
            f"<tr{kinds.get(place, '')}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for place, row in enumerate(rows)
        ]
        self._body.append(
            f'<div class="scroll{" tall" if searchable else ""}"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )

    def pictures(self, items: Iterable[tuple[str | None, str]]) -> None:
        """A row of pictures (data URIs, or None) with captions."""
        parts = []
        for source, caption in items:
            image = f'<img src="{escape(source)}" alt="">' if source else '<div class="no-image"></div>'
            parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")
        self._body.append(f'<div class="scroll"><div class="pictures">{"".join(parts)}</div></div>')

    def strip(self, source: str, caption: str) -> None:
        """A wide picture (a data URI) in its own size, with a caption."""
        image = f'<div class="scroll"><img class="strip" src="{escape(source)}" alt=""></div>'
        self._body.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")

    def render(self) -> str:
        """The whole page."""
        from plotly.offline import get_plotlyjs

        links = "".join(f'<a href="#{anchor}">{escape(text)}</a>' for anchor, text in self._contents)
        files = resources.files(__package__)
        style, script = (files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{style}</style></head><body>"
            f"<header><h1>{escape(self._title)}</h1>"
            + "".join(f"<p>{escape(line)}</p>" for line in self._lead)
            + f"<nav>{links}</nav></header><main>"
            + "\n".join(self._body)
            + f"</main><script>{get_plotlyjs()}</script><script>{script}</script></body></html>\n"
        )
