"""Predict further slides with one import of torch, which takes longer than most predictions.

A `predict-bag` job that had to import torch goes on for about as long as that took, with bags that lie beside its own
and wait for their prediction. What it makes lies in a hidden folder, under a digest of all that the prediction depends
on. The job of such a slide takes it if the digest is its own, and computes otherwise: no result depends on who made it.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.checksums import sha256_of
from pipeline.versions import SCHEMA_VERSION, STAGE_VERSIONS, __version__

log = logging.getLogger(__name__)

FOLDER = ".ahead"
SUFFIX = ".zarr.zip"
SMALL_BYTES = 16 * 2**20
"""Bags up to this size fit into the memory that every job has; larger ones are taken only by jobs of larger ones."""


@dataclass(frozen=True)
class Task:
    """What a prediction is made of, and where it goes; without splits the slide is new to all models."""

    bag: Path
    splits: Path | None
    models: Path
    options: tuple[str | float, ...]
    attention: Path

    @property
    def folder(self) -> Path:
        """Where predictions that were made ahead lie."""
        return self.attention.parent / FOLDER

    def ready(self, shared: str) -> Path:
        """Give where the slide's prediction lies if it was made ahead."""
        digest = hashlib.sha256(shared.encode())
        with zipfile.ZipFile(self.bag) as archive:
            for part in archive.infolist():
                digest.update(f"{part.filename}\0{part.file_size}\0{part.CRC}\0".encode())
        return self.folder / f"{self.attention.name.removesuffix(SUFFIX)}.{digest.hexdigest()[:32]}{SUFFIX}"


def shared_digest(task: Task) -> str | None:
    """Give a digest of what the predictions of all slides depend on; None without splits, or an index of the models."""
    index = task.models / "models.json"
    if task.splits is None or not (index.exists() and task.splits.exists()):
        return None
    versions = [__version__, SCHEMA_VERSION, STAGE_VERSIONS["predict"]]
    parts = [*versions, *task.options, sha256_of(task.splits), sha256_of(index)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def run(task: Task, predict: Callable[[Task], None]) -> None:
    """Take the slide's prediction if it was made ahead; else make it, and then others'.

    Parameters
    ----------
    task
        The slide's.
    predict
        Makes a prediction; the first call imports torch.
    """
    shared = shared_digest(task)
    if shared is None or not zipfile.is_zipfile(task.bag):
        predict(task)  # which says what is wrong
        return
    with _alone(task.bag, wait=True):
        ready = task.ready(shared)
        if ready.exists():
            os.utime(ready)  # newer than its inputs, as if it were made now
            ready.replace(task.attention)
            log.info("%s: predicted by the job of another slide", task.attention.name.removesuffix(SUFFIX))
            _sweep(task)
            return
        began = time.process_time()
        predict(task)
        budget_s = time.process_time() - began
    _sweep(task)
    _go_on(task, shared, predict, budget_s=budget_s)


def _go_on(task: Task, shared: str, predict: Callable[[Task], None], *, budget_s: float) -> None:
    """Predict bags that wait, those behind the own one first, for some processor time."""
    began = time.process_time()
    newest = max(path.stat().st_mtime for path in (task.splits, task.models / "models.json") if path is not None)
    most = max(SMALL_BYTES, task.bag.stat().st_size)
    bags = sorted(path for path in task.bag.parent.glob(f"*{SUFFIX}") if path != task.bag)
    for bag in [path for path in bags if path > task.bag] + [path for path in bags if path < task.bag]:
        if time.process_time() - began >= budget_s:
            return
        other = replace(task, bag=bag, attention=task.attention.with_name(bag.name))
        try:
            if bag.stat().st_size > most:
                continue
            with _alone(bag, wait=False) as mine:
                ready = other.ready(shared)
                if mine and not ready.exists() and not _is_done(other.attention, newest):
                    ready.parent.mkdir(exist_ok=True)
                    predict(replace(other, attention=ready))
        except Exception as error:  # noqa: BLE001 - that slide's own job will meet it, and say it in its log
            log.info("%s is left to its own job: %s", bag.name, error)


def _is_done(attention: Path, newest: float) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return attention.stat().st_mtime >= newest
    return False


def _sweep(task: Task) -> None:
    """Remove what was made ahead for the slide out of other inputs, and the folder once nothing is left."""
    name = task.attention.name.removesuffix(SUFFIX)
    for old in task.folder.glob("*"):
        if old.name.startswith(f"{name}.") and len(old.name) == len(name) + 33 + len(SUFFIX):
            old.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        task.folder.rmdir()


@contextmanager
def _alone(bag: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the bag's lock; gives whether it was free. Where there are no locks, two jobs may make the same file."""
    descriptor = os.open(bag, os.O_RDONLY)
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            free = False
        except OSError:
            log.debug("%s: its file system has no locks", bag)
        yield free
    finally:
        os.close(descriptor)
