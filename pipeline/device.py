"""Tell whether there is a GPU, and choose the device a job computes on."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)

_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What the drivers of NVIDIA (Linux, WSL) and AMD leave where everyone may look."""


def has_gpu() -> bool:
    """Whether this machine has a GPU driver; looks at files only, as importing torch takes seconds."""
    return any(Path(driver).exists() for driver in _DRIVERS)


def choose_device(*, gpus: int) -> str:
    """Give `cuda` if the job may use a GPU and there is one, else `cpu`.

    Parameters
    ----------
    gpus
        GPUs granted to the job by the scheduler; 0 means the CPU whatever the machine has.
    """
    if gpus == 0:
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    log.info("no CUDA device is visible; computing on the CPU")
    return "cpu"
