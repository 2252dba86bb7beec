"""How well tiles are told that are out of focus or folded, and how many good ones are lost: on real H&E, spoilt by us.

Defocus is a Gaussian blur of known sigma, then sensor noise and JPEG; a fold is tissue on itself (its light absorbed
twice), in curved strips. Every slide given is taken as good: what is left out of it as it is, counts as lost.

    python benchmarks/quality.py --slides FOLDER [--quick]
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.grid import place_tiles, tile_shares  # noqa: E402
from pipeline.quality import FOCUS_MPP, FOCUS_WINDOW_PX, QualityOptions, blurred_share, find_folds  # noqa: E402
from pipeline.slide import Slide, open_slide  # noqa: E402
from pipeline.tissue import TissueOptions, find_pen, find_tissue, look_at  # noqa: E402

SIGMAS_UM = (0.5, 0.75, 1.0, 1.5, 2.0)
LIMITS = QualityOptions()
TILE_UM, FOLD_UM = 112, 90


def auc(good: NDArray[np.float64], spoilt: NDArray[np.float64]) -> float:
    """Give the chance that a spoilt window scores above a good one; ties count half."""
    above = (spoilt[:, None] > good[None]).mean() + 0.5 * (spoilt[:, None] == good[None]).mean()
    return float(above)


def defocus(window: NDArray[np.uint8], sigma_um: float, noise: np.random.Generator) -> NDArray[np.uint8]:
    """Blur a window at `FOCUS_MPP`, then add a sensor's noise (sd 1.5) and JPEG at quality 80."""
    soft = cv2.GaussianBlur(window, (0, 0), sigma_um / FOCUS_MPP) + noise.normal(0, 1.5, window.shape)
    encoded = cv2.imencode(".jpg", np.clip(soft, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)


def strips(tissue: NDArray[np.bool_], *, mpp: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Draw two curved strips, 90 um wide, on tissue."""
    drawn = np.zeros(tissue.shape, np.uint8)
    places = np.argwhere(tissue)
    for _ in range(2):
        row, column = places[generator.integers(len(places))]
        along = np.linspace(-400, 400, 40) / mpp
        angle, bend = generator.uniform(0, np.pi), np.sin(along * mpp / 150) * 40 / mpp
        x = column + along * np.cos(angle) - bend * np.sin(angle)
        y = row + along * np.sin(angle) + bend * np.cos(angle)
        line = np.rint(np.stack([x, y], axis=1)).astype(np.int32)
        cv2.polylines(drawn, [line.reshape(-1, 1, 2)], False, 1, max(1, round(FOLD_UM / mpp)))
    folded: NDArray[np.bool_] = drawn.astype(np.bool_) & tissue
    return folded


def judge_folds(slide: Slide, generator: np.random.Generator) -> tuple[int, int, int, int, int]:
    """Give tiles, those lost to pen, to fold as they are; tiles mostly on a fold of ours, and those of them found."""
    pixels, mpp = slide.thumbnail(8.0)
    overview = look_at(pixels)
    tissue = find_tissue(overview, mpp=mpp, options=TissueOptions())
    downsample, edge = mpp / slide.mpp, TILE_UM / slide.mpp
    coords, _ = place_tiles(
        tissue, downsample=downsample, patch_px=edge, stride_px=edge, bounds=slide.bounds, min_tissue=0.5
    )

    def count(mask: NDArray[np.bool_], limit: float) -> NDArray[np.bool_]:
        return tile_shares(mask, coords, downsample=downsample, patch_px=edge) > limit

    pen = count(find_pen(overview, tissue), LIMITS.max_pen)
    lost = count(find_folds(overview.density, tissue, mpp=mpp), LIMITS.max_fold)
    strip = strips(tissue, mpp=mpp, generator=generator)
    density = np.where(strip[..., None], 2 * overview.density, overview.density).astype(np.float32)
    folded = count(strip, 0.5)
    found = count(find_folds(density, tissue, mpp=mpp), LIMITS.max_fold) & folded
    return len(coords), int(pen.sum()), int(lost.sum()), int(folded.sum()), int(found.sum())


def windows_of(slide: Slide) -> list[NDArray[np.uint8]]:
    """Read windows on tissue, as the tile stage looks at them."""
    pixels, mpp = slide.thumbnail(8.0)
    tissue = find_tissue(pixels, mpp=mpp, options=TissueOptions())
    edge = FOCUS_WINDOW_PX * FOCUS_MPP / slide.mpp
    coords, _ = place_tiles(
        tissue, downsample=mpp / slide.mpp, patch_px=edge, stride_px=edge, bounds=slide.bounds, min_tissue=0.5
    )
    batches = slide.patches(coords, patch_px=FOCUS_WINDOW_PX, mpp=FOCUS_MPP, threads=1)
    return [window for _, batch in batches for window in batch]


def main() -> None:
    """Judge every slide as it is and spoilt, and print what was told."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, default=ROOT.parent / "shared" / "data" / "slides")
    parser.add_argument("--quick", action="store_true", help="two slides, every fourth window")
    arguments = parser.parse_args()
    paths = sorted(arguments.slides.glob("*.svs"))[: 2 if arguments.quick else None]
    if not paths:
        print(json.dumps({"benchmark": "quality", "ratio": None, "skipped": f"no .svs in {arguments.slides}"}))
        return
    generator = np.random.default_rng(0)
    windows: list[NDArray[np.uint8]] = []
    counts = np.zeros(5, np.int64)
    for path in paths:
        with open_slide(path) as slide:
            windows += windows_of(slide)[:: 4 if arguments.quick else 1]
            counts += judge_folds(slide, generator)
    good = np.array([blurred_share(window) for window in windows])
    lost_blur = float((good > LIMITS.max_blur).mean())
    print(f"{len(windows)} windows of {len(paths)} slides; in focus, {lost_blur:.2%} are above the limit")
    focus: dict[str, dict[str, float]] = {}
    for sigma in SIGMAS_UM:
        spoilt = np.array([blurred_share(defocus(window, sigma, generator)) for window in windows])
        focus[f"{sigma} um"] = {"auc": round(auc(good, spoilt), 4), "found": float((spoilt > LIMITS.max_blur).mean())}
        print(f"  sigma {sigma} um: AUC {focus[f'{sigma} um']['auc']:.4f}, {focus[f'{sigma} um']['found']:.1%} found")
    tiles, pen, fold, folded, found = counts.tolist()
    print(f"{tiles} tiles: {pen} lost to pen, {fold} to folds; of {folded} mostly on a fold of ours, {found} found")
    lost = {"blur": lost_blur, "pen": pen / tiles, "fold": fold / tiles}
    result = {
        "windows": len(windows),
        "tiles": tiles,
        "lost": lost,
        "focus": focus,
        "folds_found": found / max(1, folded),
    }
    print(json.dumps({"benchmark": "quality", "ratio": focus["1.0 um"]["auc"], **result}))


if __name__ == "__main__":
    main()
