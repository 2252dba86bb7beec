"""What a job asks a cluster's scheduler for: memory in MB and time in minutes, by stage and size of its input.

Estimates with room above what docs/performance.md measured, not fitted: a job that asks for too little is killed and
tried again with more, one that asks for too much only waits longer for its place.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Need:
    """Memory in MB and minutes of a stage: a part that every job needs, and one for each MB of its input files."""

    memory_mb: float
    minutes: float
    memory_per_mb: float = 0.0
    minutes_per_mb: float = 0.0


PATCHES_PER_MB = 75
"""Patches of 224 px in a MB of slide, were all of it tissue: JPEG of quality 80 takes about 13 kB for each."""

SLOWEST_PATCHES_PER_S = 40
"""Speed that an embed job's time is reckoned with: a fifth of `texture` on one thread, a twelfth of a GPU's."""

TEMPORARY_MB = 1000
"""Room for temporary files that every job is given, as Snakemake itself does; a slide from a bucket comes on top."""

NEEDS: Mapping[str, Need] = MappingProxyType(
    {
        "check": Need(1000, 30, minutes_per_mb=0.0005),
        "tile": Need(1500, 10, minutes_per_mb=0.01),
        # 2.5 GB: torch with CUDA's libraries, an encoder, and the batches in flight
        "embed": Need(4000, 15, minutes_per_mb=PATCHES_PER_MB / SLOWEST_PATCHES_PER_S / 60),
        "split": Need(1500, 20, minutes_per_mb=0.001),
        "train": Need(3000, 60, minutes_per_mb=0.05),
        "compare": Need(3000, 30, minutes_per_mb=0.01),
        # of its input, the bags, it reads some, one at a time
        "agreement": Need(4000, 30),
        # features are float16 on disk and float32 at work, some copies of them
        "predict": Need(2000, 10, memory_per_mb=8, minutes_per_mb=0.05),
        "heatmap": Need(2000, 10, minutes_per_mb=0.005),
        "report": Need(3000, 60),
    }
)


def memory_mb(stage: str, *, input_mb: float, attempt: int, extra_mb: int = 0) -> int:
    """Give the memory to ask for; each further attempt asks for as much again.

    Parameters
    ----------
    stage
        A key of `NEEDS`.
    input_mb
        Size of the job's input files in MB.
    attempt
        1 at first, 2 after a failure, and so on.
    extra_mb
        What the user's settings add, as the memory for features of `train`.
    """
    need = NEEDS[stage]
    return math.ceil((need.memory_mb + need.memory_per_mb * input_mb + extra_mb) * attempt)


def minutes(stage: str, *, input_mb: float, attempt: int) -> int:
    """Give the minutes to ask for; parameters as for `memory_mb`."""
    need = NEEDS[stage]
    return math.ceil((need.minutes + need.minutes_per_mb * input_mb) * attempt)
