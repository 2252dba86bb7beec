import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from pipeline.quality import FOCUS_SAMPLES, QualityOptions, blurred_share, find_folds, sample_blur
from pipeline.tissue import TissueOptions
from tests.slides import tissue_like

ROOT = Path(__file__).parents[1]


def nuclei(*, seed: int = 0) -> NDArray[np.uint8]:
    """Draw sharp dark discs on pink, with the noise of a sensor, shape (128, 128, 3)."""
    generator = np.random.default_rng(seed)
    window = np.full((128, 128, 3), (225, 160, 195), np.uint8)
    for x, y in generator.integers(0, 128, (40, 2)).tolist():
        cv2.circle(window, (x, y), int(generator.integers(4, 8)), (90, 50, 130), -1, cv2.LINE_AA)
    return np.clip(window + generator.normal(0, 6, window.shape), 0, 255).astype(np.uint8)


def test_defocus_is_told_whatever_the_contrast() -> None:
    sharp = nuclei()
    soft = cv2.GaussianBlur(sharp, (0, 0), 3).astype(np.uint8)
    for contrast in (1.0, 0.4):
        faint, faint_soft = ((255 - contrast * (255 - image.astype(float))).astype(np.uint8) for image in (sharp, soft))
        assert blurred_share(faint) < 0.1
        assert blurred_share(faint_soft) > 0.9


def test_a_window_without_structure_is_not_called_blurred() -> None:
    assert blurred_share(np.full((128, 128, 3), 200, np.uint8)) == 0


def grid(columns: int, rows: int) -> NDArray[np.int32]:
    y, x = np.mgrid[0:rows, 0:columns] * 64
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)


class Reader:
    """Gives blurred windows where a tile lies in `blurred`, and counts what it is asked for."""

    def __init__(self, blurred: NDArray[np.bool_]) -> None:
        self.blurred, self.asked = blurred, 0
        self.sharp, self.soft = nuclei(), cv2.GaussianBlur(nuclei(), (0, 0), 4).astype(np.uint8)

    def __call__(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        self.asked += len(rows)
        return rows, np.stack([self.soft if self.blurred[row] else self.sharp for row in rows])


def test_a_slide_of_few_tiles_is_looked_at_tile_by_tile() -> None:
    coords = grid(8, 8)
    blurred = np.random.default_rng(0).random(64) < 0.3
    blur = sample_blur(coords, stride_px=64, limit=0.5, windows=Reader(blurred))
    np.testing.assert_array_equal(blur > 0.5, blurred)


def test_a_large_slide_costs_no_more_than_its_budget_and_one_tile_does_not_spoil_its_block() -> None:
    coords = grid(100, 80)
    stripe = (coords[:, 0] >= 20 * 64) & (coords[:, 0] < 40 * 64)
    reader = Reader(stripe)
    blur = sample_blur(coords, stride_px=64, limit=0.5, windows=reader)
    assert reader.asked <= 2 * FOCUS_SAMPLES
    assert ((blur > 0.5) == stripe).mean() > 0.85
    lone = Reader(np.arange(len(coords)) == 44 * 100 + 44)
    assert (sample_blur(coords, stride_px=64, limit=0.5, windows=lone) > 0.5).mean() < 0.02


def test_a_window_that_cannot_be_read_counts_as_good() -> None:
    empty = (np.empty(0, np.int64), np.empty((0, 128, 128, 3), np.uint8))
    assert sample_blur(grid(4, 4), stride_px=64, limit=0.5, windows=lambda _: empty).max() == 0
    assert sample_blur(np.empty((0, 2), np.int32), stride_px=64, limit=0.5, windows=lambda _: empty).shape == (0,)


def test_tissue_on_itself_is_a_fold_and_even_tissue_is_none() -> None:
    pixels = np.broadcast_to(np.array([190, 100, 160], np.uint8), (200, 300, 3))
    density = -np.log10(pixels / 243).astype(np.float32)
    tissue = np.ones((200, 300), np.bool_)
    assert not find_folds(density, tissue, mpp=8).any()
    folded = density.copy()
    folded[80:100, 40:260] *= 3
    found = find_folds(folded, tissue, mpp=8)
    assert found[84:96, 44:256].mean() > 0.95
    assert found.sum() < 1.5 * 20 * 220
    assert not find_folds(folded, np.zeros_like(tissue), mpp=8).any()


def test_specks_are_no_folds() -> None:
    density = np.full((200, 300, 3), 0.2, np.float32)
    density[100:108, 100:108] = (1.5, 2.0, 1.2)
    assert not find_folds(density, np.ones((200, 300), np.bool_), mpp=8).any()


@pytest.mark.slow
def test_defocus_of_real_tissue_is_told(shared_data: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/quality.py", "--quick", "--slides", str(shared_data / "slides")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["focus"]["1.0 um"]["auc"] > 0.99
    assert all(share < 0.02 for share in result["lost"].values())


def test_smooth_synthetic_tissue_counts_as_out_of_focus() -> None:
    assert blurred_share(tissue_like(128, 128)) > 0.9


def test_the_functions_have_the_defaults_of_the_configuration() -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    assert QualityOptions(**config["quality"]) == QualityOptions()
    assert TissueOptions(**config["tissue"]) == TissueOptions()
