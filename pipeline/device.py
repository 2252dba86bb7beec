"""Tell whether there is a GPU, and claim the one a job computes on.

Jobs beside each other on one machine must not meet on one GPU while another idles, and know nothing of each other. Each
holds the lock of a file that stands for its GPU; the system lets go of it when the process ends, however it ends.
"""

import fcntl
import getpass
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.isolation import progress

log = logging.getLogger(__name__)

_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What the drivers of NVIDIA (Linux, WSL) and AMD leave where everyone may look."""
_RETRY_S = 0.05


def has_gpu() -> bool:
    """Whether this machine has a GPU driver; looks at files only, as importing torch takes seconds."""
    return any(Path(driver).exists() for driver in _DRIVERS)


def kind_of_device(*, gpus: int) -> str:
    """Say what a job computes on, `cuda` or `cpu`, and claim nothing.

    Parameters
    ----------
    gpus
        GPUs granted to the job by the scheduler; 0 means the CPU whatever the machine has.
    """
    if gpus == 0:
        return "cpu"
    import torch

    if not torch.cuda.is_available() or not torch.cuda.device_count():
        log.info("no CUDA device is visible; computing on the CPU")
        return "cpu"
    return "cuda"


def claim_gpu() -> str:
    """Claim one of the visible GPUs till this process ends, and give its name for torch (`cuda:1`).

    Where all are taken by other jobs of this user, it waits for one.
    """
    import torch

    return f"cuda:{claim(visible_names(torch.cuda.device_count()))}"


def choose_device(*, gpus: int) -> str:
    """Claim a GPU as `claim_gpu` does, or give `cpu` where `kind_of_device` says so."""
    return claim_gpu() if kind_of_device(gpus=gpus) == "cuda" else "cpu"


def visible_names(count: int) -> list[str]:
    """Name the visible GPUs as the machine knows them, so that jobs that see different ones agree.

    Parameters
    ----------
    count
        GPUs that torch sees: those of CUDA_VISIBLE_DEVICES, which a cluster's scheduler sets, or all.
    """
    stated = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return stated[:count] if len(stated) >= count else [str(index) for index in range(count)]


def claim(names: Sequence[str], *, folder: Path | None = None) -> int:
    """Take a free one of some GPUs till this process ends.

    Parameters
    ----------
    names
        The GPUs.
    folder
        Where the locks are; None for the user's own folder for such files.

    Returns
    -------
    Its index in `names`.
    """
    place = folder or lock_folder()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    waiting = False
    while True:
        for index, name in enumerate(names):
            if _take(place / f"gpu-{_plain(name)}.lock"):
                log.info("computing on GPU %s", name)
                return index
        if not waiting:
            log.info("all GPUs are taken (%s); waiting for one", ", ".join(names))
            waiting = True
        progress()  # a job that waits for its turn does not hang
        time.sleep(_RETRY_S)


def lock_folder() -> Path:
    """Give the user's folder for files that live as long as the session: `$XDG_RUNTIME_DIR`, or one in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime) / "asmil-wsi"
    return Path(tempfile.gettempdir()) / f"asmil-wsi-{getpass.getuser()}"


def _take(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    # never closed: the lock is to last as long as the process
    return True


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter == "-" else "_" for letter in name)
