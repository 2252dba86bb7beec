"""Memory that a network frees stays with the process: measured in a process of its own, as it cannot be undone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import resource, sys
import numpy as np
from pipeline.encoders.allocator import keep_freed_memory

def faults_of_a_block():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(48 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if "keep" in sys.argv and not keep_freed_memory():
    print(-1)
faults_of_a_block()
print(faults_of_a_block())
"""


def faults(*arguments: str) -> int:
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout
    return int(said.splitlines()[0])


def test_a_large_block_that_was_freed_is_used_again_without_asking_the_system() -> None:
    kept = faults("keep")
    if kept < 0:
        pytest.skip("this C library has no mallopt")
    assert faults() > 10 * (kept + 1)
