"""Fixtures that every test may use."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Give the folder of real slides beside the checkout, or skip where it is not there."""
    folder = Path(os.environ.get("ASMIL_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real test slides are not on this machine")
    return folder


@pytest.fixture(autouse=True)
def threads_of_its_own() -> Iterator[None]:
    """Put back torch's threads, of which the order of sums depends, where a test's encoder used more."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what tests measure and hash out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
