"""Randomness that is seeded here and leaves the caller's generators as they were."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*seed: int, device: torch.device) -> Iterator[None]:
    """Run a block with torch's generators of the CPU and of `device` seeded, and put their states back after it.

    `torch.manual_seed` is not used, as it reseeds every device, also those that the block has no business with.

    Parameters
    ----------
    seed
        One or more non-negative numbers; each tuple gives an independent stream.
    """
    number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]) >> 1  # torch takes 63 bits
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(number)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(number)
        yield
