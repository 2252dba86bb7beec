"""Tables as text: written so that no spreadsheet takes a cell for a formula, and read back as they were.

Importing this module is cheap: the workflow does so to print its closing words.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

NUMBER = re.compile(r"\s*[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan)\s*", re.IGNORECASE)
FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
"""How a cell starts that a spreadsheet may run; with the full-width forms, which some take for the same. See OWASP,
"CSV injection"."""


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
    """Put an apostrophe in front of a text that a spreadsheet may run as a formula; numbers stay numbers."""
    return f"'{cell}" if _runs(cell.lstrip("'")) else cell


def plain(cell: str) -> str:
    """Give the cell that `guard` wrote as it was."""
    return cell[1:] if cell.startswith("'") and _runs(cell.lstrip("'")) else cell


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
