"""Copy finished results and reports to a bucket: what changed since the last copy, and what the bucket lacks."""

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import bucket, json_text, store

log = logging.getLogger(__name__)

NAME = "archive.json"
THREADS = 8
PRIVATE = "private"
"""The folder of the key by which ids are hashed: it never leaves the machine."""

UNFINISHED = frozenset({".part", ".damaged", ".chunks", ".lock"})


def run(*, results: Path, reports: Path, url: str) -> int:
    """Copy `results` and `reports` to `url/results` and `url/reports`; nothing there is removed.

    Which version of a file the bucket has is kept in `results/archive.json`: its size and time here, and the tag that
    the store gave it. A file is copied again if one of these is not what it was. Till all is copied the record says
    that it is not complete, so that the next run takes the copy up again.

    Returns
    -------
    Number of files copied.

    Raises
    ------
    PipelineError
        If the store refuses.
    """
    url = url.rstrip("/")
    record, known = results / NAME, _known(results)
    if known.get("complete"):
        _write(record, {**known, "complete": False})
    _, prefix = bucket.address(f"{url}/")
    there = {entry.key.removeprefix(prefix): entry.tag for entry in bucket.objects(f"{url}/")}
    before: dict[str, list[object]] = known.get("files", {}) if known.get("url") == url else {}
    files = {
        f"{name}/{inner}": path
        for name, place in (("results", results), ("reports", reports))
        for inner, path in _finished(place)
    }
    changed = {
        name: path
        for name, path in files.items()
        if name not in there or before.get(name) != [*_state(path), there[name]]
    }
    # taken before the copy: a file that changes meanwhile is copied again the next time
    states = {name: _state(path) for name, path in changed.items()}
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda name: bucket.upload(changed[name], f"{url}/{name}"), changed))
    there |= {entry.key.removeprefix(prefix): entry.tag for entry in bucket.objects(f"{url}/")} if changed else {}
    kept = {name: before[name] for name in files if name not in changed}
    copied = {name: [*states[name], there[name]] for name in changed}
    _write(record, {"url": url, "complete": True, "files": {**kept, **copied}})
    log.info("%d of %d files copied to %s", len(changed), len(files), url)
    return len(changed)


def is_complete(*, results: Path, url: str) -> bool:
    """Tell whether the last copy went to `url` and to its end."""
    known = _known(results)
    return known.get("url") == url.rstrip("/") and bool(known.get("complete"))


def _known(results: Path) -> dict[str, Any]:
    """Read the record; without one, or with a damaged one, everything is copied again."""
    try:
        return json_text.parse_object((results / NAME).read_bytes())
    except (FileNotFoundError, json_text.JsonError):
        return {}


def _write(record: Path, written: dict[str, Any]) -> None:
    store.write_text(record, json.dumps(written, indent=1, ensure_ascii=False) + "\n")


def _finished(folder: Path) -> Iterator[tuple[str, Path]]:
    """Give the finished files below a folder, and their paths below it."""
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if inner.parts[0] == PRIVATE or inner.as_posix() == NAME or not path.is_file():
            continue
        if not any(part.startswith(".") or Path(part).suffix in UNFINISHED for part in inner.parts):
            yield inner.as_posix(), path


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
