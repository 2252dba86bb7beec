"""How a command ends: with one sentence for what its user can mend, with a traceback for a bug."""

import errno
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

OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "insufficient memory", "std::bad_alloc")
"""Words of the errors that are no MemoryError: torch's, CUDA's, OpenCV's."""


def exit_code(work: Callable[[], object]) -> int:
    """Do `work`, say on stderr why it failed if it did, and give the process's exit code."""
    try:
        work()
    except SystemExit as ending:
        if isinstance(ending.code, str):
            return _say(ending.code)
        return int(ending.code or 0)
    except (PipelineError, BagError, TrainingError) as error:
        return _say(f"Error: {error}")
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the outermost frame: what is no known sentence is shown as a bug
        known = sentence(error)
        if known is not None:
            return _say(f"Error: {known}")
        traceback.print_exc()
        return 1
    return 0


def sentence(error: Exception) -> str | None:
    """Give the sentence for an error of the machine (memory, disk), or None for what must be a bug."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _tells_memory(error)):
        return f"the job ran out of memory ({_first_line(error)}); {MORE_MEMORY}, and run the same command again"
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return f"the job ran out of memory ({_first_line(error)}); {MORE_MEMORY}, and run the same command again"
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{error.filename or 'a file'}: {DISK[error.errno]}, and run the same command again"
    if type(error).__module__ == "cv2" and _tells_memory(error):
        return f"the job ran out of memory ({_first_line(error)}); {MORE_MEMORY}, and run the same command again"
    return None


def _tells_memory(error: Exception) -> bool:
    text = str(error).lower()
    return any(words in text for words in OUT_OF_MEMORY)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _say(text: str) -> int:
    sys.stderr.write(f"{text}\n")
    return 1
