"""Keep a crash or a hang inside a slide's file from ending anything but that slide.

Native readers (OpenSlide, libtiff, libjpeg) can crash on a malicious file, and a file on a network disk can hang for
ever. A command that opens slides therefore works in a child process: a fork before anything heavy is imported, which
costs a few milliseconds and no second start of the interpreter. The parent waits. When the child dies of a crash, or
shows no progress for too long, the parent has it confirmed by a second child, and then writes the slide's quarantined
artefact in its place. A kill (by the user, the scheduler, or the system for want of memory) is none of the slide's
doing: it is passed on, and the job fails.
"""

import contextlib
import ctypes
import faulthandler
import logging
import os
import pickle
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any, TypeVar

from pipeline.endings import exit_code, killed, say
from pipeline.errors import PipelineError, SlideError

log = logging.getLogger(__name__)

CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS})
"""Deaths that native code brings on itself. GLib ends a process that gets no memory with SIGTRAP, which is no crash."""

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What a scheduler sends to the process it started; Ctrl-C reaches the child by itself, through the terminal."""

BEAT_S = 1.0
"""Shortest time between two signs of life."""

REAP_S = 10.0
"""How long a killed child may take to end; one that hangs in the kernel is left behind."""

PR_SET_PDEATHSIG = 1

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit code, the signal it died of, or that it stalled."""

    code: int = 0
    killed_by: int = 0
    stalled: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether it crashed or stalled."""
        return self.stalled or self.killed_by in CRASHES

    def __str__(self) -> str:
        return "stalled" if self.stalled else f"crashed ({signal.Signals(self.killed_by).name})"


class _State:
    """Of this process: whether commands work in a child, and where a child's signs of life go."""

    enabled = False
    beats = -1
    last_beat = 0.0


def enable() -> None:
    """Let `run` work in a child from now on: in a process that is a command of its own."""
    _State.enabled = True


def progress() -> None:
    """Give a sign of life: something was read or encoded. Cheap, from any thread, and nothing outside a child."""
    if _State.beats < 0:
        return
    now = time.monotonic()
    if now - _State.last_beat >= BEAT_S:
        _State.last_beat = now
        with contextlib.suppress(OSError):
            os.write(_State.beats, b".")


def run(
    work: Callable[[], object],
    *,
    stalled_after_s: float,
    quarantine: Callable[[SlideError], object],
    read_again: Callable[[], object] | None = None,
) -> None:
    """Do `work` in a child, and quarantine the slide where reading it crashes or stalls.

    Parameters
    ----------
    work
        Opens the slide and writes the artefact.
    stalled_after_s
        Seconds without a call of `progress` after which the child is taken to hang.
    quarantine
        Writes the artefact that says why the slide cannot be used.
    read_again
        Reads what `work` reads and nothing else, where `work` does more that could crash (an encoder); a fault counts
        as the slide's only if this has it too. By default `work` is tried a second time.

    Raises
    ------
    PipelineError
        If `work` crashes or stalls and reading alone does not.
    SystemExit
        With the child's code, if that is not 0.
    """
    if not _State.enabled:
        work()
        return
    first = attempt(work, stalled_after_s=stalled_after_s)
    if not first.is_fault:
        _pass_on(first)
        return
    log.warning("the job %s; it is tried again to see whether the slide is the cause", first)
    second = attempt(read_again or work, stalled_after_s=stalled_after_s)
    if second.is_fault:
        quarantine(_explained(second, stalled_after_s))
        return
    _pass_on(second)
    if read_again is not None:
        raise PipelineError(
            f"the job {first} but the slide can be read: the encoder or the installation is the cause; run the same"
            " command again, and if it stays, try another version of torch or its driver"
        )


def each(
    items: Sequence[Item],
    work: Callable[[Item], Result],
    *,
    failed: Callable[[Item, SlideError], Result],
    threads: int,
    stalled_after_s: float,
) -> list[Result]:
    """Do a little work on each of many slides, in one child as long as none of them crashes or stalls it.

    A process a slide would cost more than the work. The child says in a file what it begins and what came out; when it
    crashes or stalls, what it had begun and not ended is tried once more, each item in a child of its own, and the rest
    goes on in a new one.

    Parameters
    ----------
    items
        What `work` takes.
    work
        Called with each item, on `threads` threads; what it returns can be pickled.
    failed
        Gives the result of an item whose work crashes or stalls.
    stalled_after_s
        Seconds in which nothing is begun or ended after which the child is taken to hang.

    Returns
    -------
    A result an item.

    Raises
    ------
    PipelineError
        If a child crashes before it begins with an item.
    SystemExit
        With a child's code, if `work` raises.
    """
    if not _State.enabled:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(work, items))
    results: dict[int, Result] = {}
    while left := [number for number in range(len(items)) if number not in results]:
        outcome, begun = _some_of(items, left, work, results, threads=threads, stalled_after_s=stalled_after_s)
        if not outcome.is_fault:
            _pass_on(outcome)
            continue
        if not begun:
            raise PipelineError(f"the job {outcome} before it opened a slide; the installation is the cause")
        log.warning("the reader %s; %d slide(s) are tried again, one by one", outcome, len(begun))
        for number in begun:
            outcome, _ = _some_of(items, [number], work, results, threads=1, stalled_after_s=stalled_after_s)
            if outcome.is_fault:
                results[number] = failed(items[number], _explained(outcome, stalled_after_s))
            else:
                _pass_on(outcome)
    return [results[number] for number in range(len(items))]


def _some_of(
    items: Sequence[Item],
    numbers: Sequence[int],
    work: Callable[[Item], Result],
    results: dict[int, Result],
    *,
    threads: int,
    stalled_after_s: float,
) -> tuple[Outcome, list[int]]:
    """Do some of the items in a child and add their results; give those that were begun and not ended, too."""
    with tempfile.TemporaryFile() as notes:
        lock = threading.Lock()

        def note(*record: object) -> None:
            with lock:
                pickle.dump(record, notes)
                notes.flush()
            progress()

        def one(number: int) -> None:
            note(number)
            note(number, work(items[number]))

        def all_of() -> None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(one, numbers):
                    pass

        outcome = attempt(all_of, stalled_after_s=stalled_after_s)
        notes.seek(0)
        begun = set()
        for number, *result in _records(notes):
            begun.add(number)
            if result:
                results[number] = result[0]
    return outcome, sorted(begun - results.keys())


def _records(notes: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """Read what a child noted; the last record of one that crashed may be cut."""
    while True:
        try:
            yield pickle.load(notes)  # noqa: S301 - written by this program's own child, in a file without a name
        except (EOFError, pickle.UnpicklingError):
            return


def attempt(work: Callable[[], object], *, stalled_after_s: float) -> Outcome:
    """Do `work` in a child process, and tell how that ended; the child never returns from here."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_in_child(work, parent=parent, beats=writer))
    os.close(writer)
    with _forwarding(child):
        stalled = not _wait(reader, stalled_after_s)
        os.close(reader)
        if stalled:
            os.kill(child, signal.SIGKILL)
            _reap(child)
            return Outcome(stalled=True)
        _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Outcome(killed_by=os.WTERMSIG(status))
    return Outcome(code=os.WEXITSTATUS(status))


def _in_child(work: Callable[[], object], *, parent: int, beats: int) -> int:
    _die_with(parent)
    _State.beats, _State.enabled = beats, False
    os.set_blocking(beats, False)
    with contextlib.suppress(OSError, ValueError):  # a stderr without a file: only the crash's traceback is missing
        faulthandler.enable()
    code = exit_code(work)
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _die_with(parent: int) -> None:
    """Let the kernel end this process when its parent ends: a killed job leaves no child that goes on writing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _wait(reader: int, stalled_after_s: float) -> bool:
    """Wait until the other end is closed; False when nothing came through for too long."""
    while select.select([reader], [], [], stalled_after_s)[0]:
        if not os.read(reader, 4096):
            return True
    return False


def _reap(child: int) -> None:
    """Wait for a killed child, but not for one that hangs in the kernel."""
    deadline = time.monotonic() + REAP_S
    while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)


@contextmanager
def _forwarding(child: int) -> Iterator[None]:
    """Hand signals on to the child, and outlive Ctrl-C until the child has cleaned up."""

    def forward(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    before = {number: signal.signal(number, forward) for number in FORWARDED}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(outcome: Outcome) -> None:
    """End as the child ended, unless it ended well."""
    if outcome.killed_by:
        say(f"Error: {killed(outcome.killed_by)}")
        if outcome.killed_by != signal.SIGKILL:
            signal.signal(outcome.killed_by, signal.SIG_DFL)
        os.kill(os.getpid(), outcome.killed_by)
    if outcome.code:
        sys.exit(outcome.code)


def _explained(outcome: Outcome, stalled_after_s: float) -> SlideError:
    if outcome.stalled:
        return SlideError(
            f"reading it stalled: nothing came for {stalled_after_s:g} s, twice",
            remedy="check the disk or the network it is on (or raise slide.stalled_after_s), delete this slide's file"
            " below results/tiles and run again",
        )
    return SlideError(
        f"the reader {outcome} on it, twice",
        remedy="the file is damaged or malicious: copy it again, or export it again from the scanner's software",
    )
