"""Find how many patches a GPU should encode at once, and remember it for this encoder on this kind of device."""

import logging
import time
from collections.abc import Callable

import torch

from pipeline import remembered

logger = logging.getLogger(__name__)

SMALLEST, LARGEST = 16, 512
WORTH = 1.05
"""Gain in patches per second for which twice the memory is taken."""


def find_batch_size(encode: Callable[[int], None], *, key: tuple[str, ...], device: torch.device) -> int:
    """Give the batch size that was found before, or measure it now.

    Parameters
    ----------
    encode
        Encodes that many blank patches; raises torch.OutOfMemoryError where they do not fit.
    key
        What the result depends on.
    device
        Where it happens.
    """
    known = remembered.recall("batch size", *key)
    if isinstance(known, int) and known > 0:
        return known

    def seconds(size: int) -> float:
        encode(size)  # the first call of a size also plans its kernels
        _wait(device)
        start = time.perf_counter()
        encode(size)
        _wait(device)
        return time.perf_counter() - start

    found = fastest(seconds)
    remembered.remember(found, "batch size", *key)
    logger.info("%s: encoding %d patches at once", key[0], found)
    return found


def fastest(seconds: Callable[[int], float]) -> int:
    """Double the batch size until that is no longer worth it or memory runs out.

    Parameters
    ----------
    seconds
        Time that a batch of a size takes, s; raises torch.OutOfMemoryError where it does not fit.

    Returns
    -------
    The size, at least 1: where even the smallest does not fit, the encoder itself finds what does.
    """
    best, best_rate, size = SMALLEST, 0.0, SMALLEST
    while size <= LARGEST:
        try:
            rate = size / seconds(size)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            # close to the limit another slide's patches may not fit any more
            return max(1, best)
        if rate < best_rate * WORTH:
            return best
        best, best_rate, size = size, rate, size * 2
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
