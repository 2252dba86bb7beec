"""Tables as text: written so that no spreadsheet takes a cell for a formula, and read back as they were.

Importing this module is cheap: the workflow does so to print its closing words.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

NUMBER = re.compile(r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan)\s*", re.IGNORECASE)
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""How a cell starts that a spreadsheet may run; with the full-width forms, which some take for the same. See OWASP,
"CSV injection"."""
SEPARATOR = re.compile(r"([;,\t\r\n])")
"""Where a spreadsheet may end a cell whatever the table's own delimiter is: by its region's list separator, or its
import's choice. Quotes do not keep it, as they only count at the start of what it takes for a cell."""


def text(rows: Iterable[Sequence[object]], *, delimiter: str) -> str:
    """Give rows as text, guarded."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\n")
    writer.writerows([guard(str(cell)) for cell in row] for row in rows)
    return buffer.getvalue()


def flat(cell: str) -> str:
    """Give a cell in one line without tabs, for tables that are read line by line."""
    return " ".join(cell.splitlines()).replace("\t", " ")


def guard(cell: str) -> str:
    """Put an apostrophe in front of each text that a spreadsheet may run as a formula; numbers stay numbers.

    A formula may also stand behind what another spreadsheet takes for the end of a cell.
    """
    return _after_separators(_guarded(cell), _guarded)


def plain(cell: str) -> str:
    """Give the cell that `guard` wrote as it was."""
    return _unguarded(_after_separators(cell, _unguarded))


def _after_separators(cell: str, change: Callable[[str], str]) -> str:
    """Change what follows each separator in a cell."""
    first, *others = SEPARATOR.split(cell)  # a separator and what follows it, in turns
    return first + "".join(change(part) if place % 2 else part for place, part in enumerate(others))


def _guarded(text: str) -> str:
    return f"'{text}" if _runs(text.lstrip("'")) else text


def _unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and _runs(text.lstrip("'")) else text


def _runs(cell: str) -> bool:
    return FORMULA.match(cell) is not None and NUMBER.fullmatch(cell) is None


def lines(table: Path, *, delimiter: str) -> Iterator[list[str]]:
    """Read the rows of a table that `text` gave, the header first.

    Raises
    ------
    csv.Error, UnicodeDecodeError
        If it is no table.
    """
    with table.open(encoding="utf-8", newline="") as handle:
        for row in csv.reader(handle, delimiter=delimiter):
            if row:
                yield [plain(cell) for cell in row]


def rows(table: Path, *, delimiter: str) -> list[dict[str, str]]:
    """Read a table that `text` gave: a dict a row, by the names in its header; a short row lacks its last cells."""
    header, *found = [*lines(table, delimiter=delimiter)] or [[]]
    return [dict(zip(header, row, strict=False)) for row in found]
