"""How a loader is fuzzed: a target, and what changes right files and makes wrong ones."""

import contextlib
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as some

from pipeline.errors import PipelineError

JSON = some.recursive(
    some.none() | some.booleans() | some.floats() | some.integers() | some.text(max_size=6),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
ANYTHING = some.binary(max_size=300)


@dataclass(frozen=True)
class Target:
    """A loader that is fuzzed.

    Parameters
    ----------
    read
        Reads a file of these bytes, in an empty folder.
    strategy
        Makes the bytes.
    seeds
        Gives files that are right.
    native
        Whether native code reads the file: it then works in a child process, as in the pipeline, and may crash there.
    """

    read: Callable[[bytes, Path], object]
    strategy: some.SearchStrategy[bytes]
    seeds: Callable[[], list[bytes]]
    native: bool = False


def ours(target: Target, content: bytes) -> None:
    """Let a target read bytes; only our errors may come out of it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.suppress(PipelineError):
        warnings.simplefilter("ignore")  # a library's remark on a damaged file is no failure
        target.read(content, Path(folder))


def mutated(content: bytes, changes: list[tuple[float, int]], *, head: int, cut: float | None) -> bytes:
    """Change bytes, half of them among the first `head`, where a format's tables are, and cut the rest off."""
    changed = bytearray(content)
    for number, (place, value) in enumerate(changes):
        changed[int(place * (min(head, len(changed)) if number % 2 else len(changed) - 1))] = value
    return bytes(changed if cut is None else changed[: int(cut * len(changed))])


def changed(content: Callable[[], bytes], *, head: int = 2000) -> some.SearchStrategy[bytes]:
    """Make files that differ from a right one in a few bytes, or are cut short."""
    changes = some.lists(some.tuples(some.floats(0, 1), some.integers(0, 255)), max_size=12)
    cut = some.none() | some.floats(0, 1)
    return some.builds(
        lambda changes, cut: mutated(content(), changes, head=min(head, len(content()) - 1), cut=cut), changes, cut
    )
