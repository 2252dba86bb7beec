"""How a command ends: with one sentence for what its user can mend, with a traceback for a bug."""

import errno
import signal
import sys
import traceback
from collections.abc import Callable

from asmil.errors import BagError, TrainingError
from pipeline.errors import PipelineError

MORE_MEMORY = (
    "give it more memory (snakemake --set-resources RULE:mem_mb=N), run fewer jobs at a time (--cores), or lower"
    " encoder.batch_size or training.cache_gb"
)
DISK = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your quota is used up; free some space",
    errno.EROFS: "the file system is read-only; write elsewhere (paths.results, paths.reports) or mount it writable",
    errno.EACCES: "permission denied; check who owns it",
    errno.EPERM: "permission denied; check who owns it",
    errno.EIO: "the disk gave an input/output error; look at its health",
    errno.ESTALE: "the network file system lost it; look at its server",
}
"""What a failing disk means to a user, by errno."""

OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "insufficient memory",
    "std::bad_alloc",
    "cannot allocate memory",
    "can't start new thread",
    "allocation error",
    "failed to map segment",
)
"""Words of the errors that are no MemoryError: torch's, CUDA's, OpenCV's, Python's, the codecs', the linker's."""


def exit_code(work: Callable[[], object]) -> int:
    """Do `work`, say on stderr why it failed if it did, and give the process's exit code."""
    try:
        work()
    except SystemExit as ending:
        if isinstance(ending.code, str):
            return say(ending.code)
        return int(ending.code or 0)
    except (PipelineError, BagError, TrainingError) as error:
        return say(f"Error: {error}")
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the outermost frame: what is no known sentence is shown as a bug
        known = sentence(error)
        if known is not None:
            return say(f"Error: {known}")
        traceback.print_exc()
        return 1
    return 0


def sentence(error: Exception) -> str | None:
    """Give the sentence for an error of the machine (memory, disk), or None for what must be a bug."""
    by_words = isinstance(error, RuntimeError | ImportError) or type(error).__module__ == "cv2"
    refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or refused or (by_words and tells_memory(error)):
        return f"the job ran out of memory ({_first_line(error)}); {MORE_MEMORY}, and run the same command again"
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.filename or 'a file'}: {DISK[error.errno]}, and run the same command again"
    return None


def tells_memory(error: Exception) -> bool:
    """Tell whether an error's words are those of a library that got no memory, or no thread for want of it."""
    text = str(error).lower()
    return any(words in text for words in OUT_OF_MEMORY)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def killed(number: int) -> str:
    """Give the sentence for a job that died of a signal which says nothing about its slide."""
    name = signal.Signals(number).name
    again = "run the same command again"
    if number == signal.SIGKILL:
        return (
            f"the job was killed ({name}): by the system or the scheduler for want of memory, or by hand;"
            f" {MORE_MEMORY}, and {again}"
        )
    if number == signal.SIGTRAP:
        return f"a library gave up ({name}), as GLib does when it gets no memory; {MORE_MEMORY}, and {again}"
    if number == signal.SIGXCPU:
        return f"the job used up its CPU time ({name}); raise that limit (ulimit -t) and {again}"
    return (
        f"the job was told to end ({name}): by hand, or by the scheduler at its time limit or for another job; {again},"
        " with more time (snakemake --set-resources RULE:runtime=MINUTES) if it was that"
    )


def say(text: str) -> int:
    """Write a closing sentence to stderr, or to stdout where that fails; give the exit code of a failure.

    The workflow sends stderr to a log, which can lie on the very disk that is full.
    """
    for stream in (sys.stderr, sys.stdout):
        try:
            stream.write(f"{text}\n")
            stream.flush()
        except OSError:
            continue
        break
    return 1
