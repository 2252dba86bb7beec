"""Results as JSON lines, a line a run, so that a benchmark that is cut goes on where it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Done:
    """What was run: each row holds its key (what was run) and its figures.

    Parameters
    ----------
    path
        The file, read now and appended to; None keeps the rows in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        found = path.read_text().splitlines() if path is not None and path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in found]

    def find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Give the row of a key, or None."""
        return next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)

    def add(self, key: Mapping[str, Any], figures: Mapping[str, float]) -> dict[str, Any]:
        """Keep a row, at once in the file, and give it."""
        self.rows.append({**key, **figures})
        if self.path is not None:
            with self.path.open("a") as handle:
                handle.write(json.dumps(self.rows[-1]) + "\n")
        return self.rows[-1]
