"""A page as a reader without eyes has it: its numbers, its headings, its tables, its charts."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})
SHAPES = frozenset({"path", "rect", "circle", "line", "polyline"})
NUMBER = re.compile(r"0x[0-9a-f]+|[-+]?\d[\d,]*(?:\.\d+)?")


class Page(HTMLParser):
    """Everything that a test asks of a page. Raises AssertionError for tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.headings: list[str] = []
        self.outside: list[str] = []
        self.texts: list[str] = []
        self.scrolls: list[dict[str, str | None]] = []
        self.charts: dict[str, int] = {}
        """Every chart with the number of rows of its table."""
        self._chart: str | None = None
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if given.get("class") == "scroll":
            self.scrolls.append(given)
        if "data-chart" in given:
            self._chart = str(given["data-chart"])
            self.charts[self._chart] = 0
        if "data-at" in given and self._chart is not None:
            self.charts[self._chart] += 1
        self.outside += [
            value
            for name, value in attrs
            if name in ("src", "href") and value and not value.startswith("#")
        ]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in SHAPES | VOID, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag
        if tag == "figure":
            self._chart = None

    def handle_data(self, data: str) -> None:
        where = set(self.open)
        if "h2" in where:
            self.headings.append(data.strip())
        if not where & {"script", "style", "svg", "pre"}:
            self.texts.append(data)

    def numbers(self) -> list[str]:
        """Every number that is written on the page, outside of its drawings, whose numbers are
        those of their tables."""
        return [number for text in self.texts for number in NUMBER.findall(text)]
