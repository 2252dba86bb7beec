"""One run at a time in a folder, also after a run that was killed.

Snakemake marks its folder with files, which stay behind when it is killed; the next run then refuses to start. The
locks here are the kernel's, which end with their process: whoever gets them knows that no other run lives, and may
clear the marks away. Jobs hold a lock too, as those of a killed run go on for a while and must not meet the next ones.
"""

import contextlib
import fcntl
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pipeline.endings import sentence
from pipeline.errors import ConfigError

FOLDER = Path(".snakemake")
RUN, JOBS = "asmil-run.lock", "asmil-jobs.lock"
VARIABLE = "ASMIL_JOBS_LOCK"
"""Environment variable by which a run tells its jobs the file to hold."""

LOOKS = frozenset(
    {"--dry-run", "--dryrun", "--lint", "--summary", "--detailed-summary", "--dag", "--rulegraph", "--filegraph"}
    | {"--d3dag", "--list", "--list-rules", "--list-target-rules", "--report", "--containerize", "--export-cwl"}
    | {"--list-changes", "--list-input-changes"}
)
"""Options of snakemake with which nothing is run."""

LOOKING, VALUED = frozenset("nlSD"), frozenset("COPRTUcdejqsw")
"""The same by their letters, of which several may follow one dash; and letters after which a value follows."""

ROOM_BYTES = 2**18
"""Less than any run writes; a disk with less room is full."""

_held: list[int] = []
"""Descriptors of the locks of this process, open until it ends."""


def only_looks(arguments: Iterable[str]) -> bool:
    """Tell whether a command line of snakemake asks for no work: such a run may look on beside another."""
    return any(argument.partition("=")[0] in LOOKS or LOOKING & set(_letters(argument)) for argument in arguments)


def _letters(argument: str) -> Iterator[str]:
    """Give the options that an argument of letters holds, as `-Fn`; what follows one with a value is its value."""
    for letter in argument[1:] if argument[:1] == "-" != argument[1:2] else "":
        yield letter
        if letter in VALUED:
            return


def require_room(*folders: Path) -> None:
    """Write a little into each folder, before any work: Snakemake itself has no words for a full disk.

    Raises
    ------
    ConfigError
        If there is no room in one, or it cannot be written.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(ROOM_BYTES))
        except OSError as error:
            raise ConfigError(sentence(OSError(error.errno, error.strerror, str(folder))) or str(error)) from error


def claim(folder: Path = FOLDER, *, after_kill: Callable[[], object] = lambda: None) -> None:
    """Make this process the only run in `folder`, clear away what a killed run left, and wait for its last jobs.

    Where the file system knows no locks, Snakemake's own are all there is.

    Parameters
    ----------
    folder
        Snakemake's folder in the study.
    after_kill
        Called where the last run was killed, before its marks are cleared away: a kill meanwhile leaves them.

    Raises
    ------
    ConfigError
        If another run works there; says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = os.open(folder / RUN, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(run, 4096, 0).decode("utf-8", "replace")
        os.close(run)
        raise ConfigError(
            f"another run works in {folder.resolve().parent} ({_who(owner)}); wait for its end or stop it, or give this"
            " one a folder of its own (--directory)"
        ) from error
    except OSError:
        os.close(run)
        return
    _held.append(run)
    os.truncate(run, 0)
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    os.pwrite(run, json.dumps({"process": os.getpid(), "host": socket.gethostname(), "started": started}).encode(), 0)
    _wait_for_jobs(folder / JOBS)
    stale = list((folder / "locks").glob("*")) if (folder / "locks").is_dir() else []
    if stale:
        sys.stderr.write("The last run in this folder was killed; what it finished is kept, the rest is made again.\n")
        after_kill()
    for mark in stale:
        mark.unlink(missing_ok=True)


def claim_outputs(*folders: Path) -> None:
    """Make this process the only run that writes to its folders, which the settings of another study may name too.

    Parameters
    ----------
    folders
        Existing folders. Where the file system does not lock folders, nothing is held.

    Raises
    ------
    ConfigError
        If another run holds one.
    """
    for folder in {folder.resolve() for folder in folders}:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise ConfigError(
                f"a run of another study writes to {folder}; wait for its end, or give this study folders of its own"
                " (paths.results, paths.reports)"
            ) from error
        except OSError:
            os.close(descriptor)
            continue
        _held.append(descriptor)


def join() -> None:
    """Hold the lock of the run's jobs, where this process is one, until it ends."""
    path = os.environ.get(VARIABLE)
    if not path:
        return
    with contextlib.suppress(OSError):  # another node of a cluster may not see the file: it is then no job to wait for
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held.append(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _wait_for_jobs(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write("Jobs of a killed run are still working here; this run starts when they have ended.\n")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)  # which frees it for the jobs of this run


def _who(owner: str) -> str:
    try:
        found = json.loads(owner)
        return f"process {found['process']} on {found['host']}, since {found['started']}"
    except (ValueError, KeyError, TypeError):
        return "it does not say which"
