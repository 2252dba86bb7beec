"""Remember between jobs what was measured once on this machine; forgetting any of it costs time and nothing else."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Give the user's cache folder: `$XDG_CACHE_HOME/asmil-wsi`, or `~/.cache/asmil-wsi`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asmil-wsi"


def recall(*key: object) -> Any:
    """Give what was remembered under a key of JSON values, or None."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads(_path(key).read_text(encoding="utf-8"))["value"]
    return None


def remember(value: object, *key: object) -> None:
    """Remember a JSON value under a key; where the folder cannot be written nothing happens."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")  # jobs beside each other measure the same
        part.write_text(json.dumps({"key": key, "value": value}), encoding="utf-8")
        part.replace(path)


def _path(key: tuple[object, ...]) -> Path:
    return cache_folder() / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.json"
