"""CSV files that a user wrote: read whole, or refused in a sentence that names the line."""

import csv
import unicodedata
from pathlib import Path

from pipeline.errors import ConfigError


def read_csv(
    path: Path, *, required: tuple[str, ...], known: tuple[str, ...], prefix: str | None = None
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file that a user wrote.

    Parameters
    ----------
    required, known, prefix
        Columns it must have, those it may have, and how further ones may begin.

    Returns
    -------
    Line number, and cells by column, of each row that is not empty.

    Raises
    ------
    ConfigError
        If the file is missing or malformed; the sentence names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is missing; make it, a CSV with the columns {', '.join(required)} and optionally patient_id, site"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text; save it as 'CSV UTF-8'") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); it must be a CSV file") from error
    reader = csv.reader(text.splitlines(), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, required, known, prefix)
        rows = []
        for cells in reader:
            if len(cells) != len(header) and any(cell.strip() for cell in cells):
                raise ConfigError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells where the header has {len(header)};"
                    " quote cells that hold commas"
                )
            if any(cell.strip() for cell in cells):
                # one way of writing accented letters, or one patient could be two
                plain = (unicodedata.normalize("NFC", cell.strip()) for cell in cells)
                rows.append((reader.line_num, dict(zip(header, plain, strict=True))))
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: not a CSV file ({error}); save it as CSV again") from error
    return rows


def _check_header(
    path: Path, header: list[str], required: tuple[str, ...], known: tuple[str, ...], prefix: str | None
) -> None:
    if len(header) == 1 and (";" in header[0] or "\t" in header[0]):
        raise ConfigError(f"{path}: the cells are not separated by commas; save it as comma-separated CSV")
    for name in required:
        if name not in header:
            raise ConfigError(f"{path}: there is no column '{name}'; its columns are {', '.join(header) or 'none'}")
    for name in header:
        if name not in known and not (prefix and name.startswith(prefix)):
            hint = f" or {prefix}<name>" if prefix else ""
            raise ConfigError(
                f"{path}: unknown column '{name}'; remove it or use {', '.join(dict.fromkeys(known))}{hint}"
            )
        if header.count(name) > 1:
            raise ConfigError(f"{path}: column '{name}' occurs twice; remove one")
