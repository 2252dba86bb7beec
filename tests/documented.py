"""The commands that the documentation names."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Documented:
    """A command as the documentation writes it: `snakemake` or `pipeline`, then its words.

    `fenced` ones are whole, those within a sentence may name a command without what it needs.
    """

    words: tuple[str, ...]
    fenced: bool

    def __str__(self) -> str:
        return " ".join(self.words)


def documented(page: Path) -> Iterator[Documented]:
    """Give the commands of this project in a page, each once."""
    text = page.read_text(encoding="utf-8")
    seen = set()
    blocks = re.findall(r"(?ms)^ *```[a-z]*\n(.*?)^ *```", text)
    lines = [(line, True) for block in blocks for line in block.splitlines()]
    outside = re.sub(r"(?ms)^ *```.*?^ *```", "", text)
    lines += [(" ".join(span.split()), False) for span in re.findall(r"`([^`]+)`", outside)]
    for line, fenced in lines:
        line = re.sub(r"\[(--\S+)\]", r"\1", line)  # an option that may be left out
        found = re.match(r"\s*(?:\$ )?(?:\.venv/bin/)?(?:python -m (pipeline)|(snakemake)) (.+)", line)
        if found and line not in seen:
            seen.add(line)
            yield Documented((found[1] or found[2], *shlex.split(found[3], comments=True)), fenced)
