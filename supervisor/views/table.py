"""These tables fit a terminal: names are never shortened, other columns give way, and remarks go below their row where they have no room."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.text import Text

_GAP: Final = "  "
_INDENT: Final = "    "
_NARROWEST: Final = 30
"""Columns that a remark needs to stand in a line of its own."""
_PIPE: Final = 120
"""Columns up to which a remark stands beside its row where nobody knows how wide it is read."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column. When the table is too wide, columns with the smallest `give_way` go first (0: never); before one goes it is shown as `short`."""

    title: str
    right: bool = False
    give_way: int = 0
    short: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A row. `cells` are plain text without controls, "" is a dash; `styles` belong to columns by their position; `remarks` are sentences."""

    cells: Sequence[str]
    remarks: Sequence[str] = ()
    styles: Sequence[str] = ()
    remark_style: str = ""


def render(title: str, columns: Sequence[Column], rows: Sequence[Row], width: int | None) -> list[Text]:
    """Return lines of at most `width` columns as long as names allow it. None is a pipe or a file: nothing is left out, no remark is wrapped."""
    cells = [[cell or "-" for cell in row.cells] for row in rows]
    shown = _fit(columns, cells, width)
    wide = {at: max(cell_len(columns[at].title), *(cell_len(row[at]) for row in cells), 0) for at in shown}
    lines = [
        Text(title, style="bold"),
        _line([columns[at].title for at in shown], [wide[at] for at in shown], columns, shown, ["dim"] * len(shown)),
    ]
    for row, texts in zip(rows, cells, strict=True):
        styles = [row.styles[at] if at < len(row.styles) else "" for at in shown]
        line = _line([texts[at] for at in shown], [wide[at] for at in shown], columns, shown, styles)
        lines += _with_remarks(line, sum(wide.values()) + len(_GAP) * (len(wide) - 1), row, width)
    return lines


def _fit(columns: Sequence[Column], cells: list[list[str]], width: int | None) -> list[int]:
    """Return which columns are shown. `cells` are shortened in place."""
    shown = list(range(len(columns)))
    if width is None:
        return shown

    def total() -> int:
        widths = [max(cell_len(columns[at].title), *(cell_len(row[at]) for row in cells), 0) for at in shown]
        return sum(widths) + len(_GAP) * (len(widths) - 1)

    for at in sorted((at for at in shown if columns[at].give_way), key=lambda at: columns[at].give_way):
        if total() <= width:
            break
        short = columns[at].short
        if short is not None:
            for row in cells:
                row[at] = short(row[at])
        if short is None or total() > width:
            shown.remove(at)
    return shown


def _line(texts: list[str], widths: list[int], columns: Sequence[Column], shown: list[int], styles: list[str]) -> Text:
    line = Text(no_wrap=True)
    for place, (text, width, at, style) in enumerate(zip(texts, widths, shown, styles, strict=True)):
        fill = " " * (width - cell_len(text))
        line.append(_GAP if place else "")
        line.append(fill if columns[at].right else "")
        line.append(text, style=style)
        line.append("" if columns[at].right else fill)
    line.rstrip()
    return line


def _with_remarks(line: Text, table: int, row: Row, width: int | None) -> list[Text]:
    """Put remarks beside the row where they fit, behind the `table`'s width; else below it, a paragraph each."""
    remarks = [remark for remark in row.remarks if remark]
    if not remarks:
        return [line]
    together = "; ".join(remarks)
    if table + len(_GAP) + cell_len(together) <= (_PIPE if width is None else width):
        return [Text.assemble(line, " " * (table - line.cell_len), _GAP, (together, row.remark_style))]
    if width is None:
        return [line, *(Text(_INDENT + remark) for remark in remarks)]
    below = [
        Text(_INDENT + part, style=row.remark_style)
        for remark in remarks
        for part in textwrap.wrap(
            remark, max(_NARROWEST, width - len(_INDENT)), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    ]
    return [line, *below]
