"""How well tiles are told that are out of focus, folded or under a bubble, and how many good ones are lost: real H&E.

Defocus is a Gaussian blur of known sigma, then sensor noise and JPEG; a fold is tissue on itself, its light absorbed
twice (a flap) or three times (a pleat), in curved strips; a bubble is a dark, grey, elliptic rim. Every slide given is
taken as good: what is left out of it as it is, counts as lost.

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

from pipeline.bubbles import find_bubbles  # noqa: E402
from pipeline.grid import place_tiles, tile_shares  # noqa: E402
from pipeline.quality import FOCUS_MPP, FOCUS_WINDOW_PX, QualityOptions, blurred_share, find_folds  # noqa: E402
from pipeline.slide import Slide, open_slide  # noqa: E402
from pipeline.tissue import TissueOptions, find_pen, find_tissue, look_at  # noqa: E402

SIGMAS_UM = (0.5, 0.75, 1.0, 1.5, 2.0)
LIMITS = QualityOptions()
TILE_UM, FOLD_UM = 112, 90
LAYERS = (2, 3)
RIMS = (0.2, 0.35, 0.6)
"""Optical density that a bubble's rim adds at its darkest."""


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


def under_bubble(
    pixels: NDArray[np.uint8], rim: float, *, mpp: float, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a bubble of 0.1 to 0.6 mm2, its rim 40 um wide and unevenly dark; give the picture and what it covers."""
    height, width = pixels.shape[:2]
    radius, flatness = generator.uniform(180, 450) / mpp, generator.uniform(0.75, 1)
    centre = generator.uniform(radius, width - radius), generator.uniform(radius, height - radius)
    inside = np.zeros((height, width), np.uint8)
    cv2.ellipse(inside, (centre, (2 * radius, 2 * radius * flatness), generator.uniform(0, 180)), 1, -1)
    depth = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    rows, columns = np.mgrid[:height, :width]
    uneven = 1 + 0.3 * np.sin(3 * np.arctan2(rows - centre[1], columns - centre[0]))
    density = rim * uneven * np.exp(-0.5 * np.square(depth * mpp / 17))
    return np.asarray(pixels * np.power(10, -density[..., None]), np.uint8), inside.astype(np.bool_)


def judge_bubbles(slide: Slide, generator: np.random.Generator) -> NDArray[np.float64]:
    """Give the share of the overview taken for a bubble as it is, and per rim whether most of a bubble was found."""
    pixels, mpp = slide.thumbnail(8.0)
    found = [float(find_bubbles(look_at(pixels), mpp=mpp).mean())]
    for rim in RIMS:
        drawn, inside = under_bubble(pixels, rim, mpp=mpp, generator=generator)
        found.append(float(find_bubbles(look_at(drawn), mpp=mpp)[inside].mean() > 0.5))
    return np.array(found)


def judge_folds(slide: Slide, generator: np.random.Generator) -> tuple[int, ...]:
    """Give tiles, those lost to pen and fold as they are, tiles mostly on a fold of ours, those found per `LAYERS`."""
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
    folded = count(strip, 0.5)
    found = []
    for layers in LAYERS:
        density = np.where(strip[..., None], layers * overview.density, overview.density).astype(np.float32)
        found.append(int((count(find_folds(density, tissue, mpp=mpp), LIMITS.max_fold) & folded).sum()))
    return len(coords), int(pen.sum()), int(lost.sum()), int(folded.sum()), *found


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
    counts, bubbles = np.zeros(4 + len(LAYERS), np.int64), []
    for path in paths:
        with open_slide(path) as slide:
            windows += windows_of(slide)[:: 4 if arguments.quick else 1]
            for _ in range(5):
                counts += judge_folds(slide, generator)
                bubbles.append(judge_bubbles(slide, generator))
    good = np.array([blurred_share(window) for window in windows])
    lost_blur = float((good > LIMITS.max_blur).mean())
    print(f"{len(windows)} windows of {len(paths)} slides; in focus, {lost_blur:.2%} are above the limit")
    focus: dict[str, dict[str, float]] = {}
    for sigma in SIGMAS_UM:
        spoilt = np.array([blurred_share(defocus(window, sigma, generator)) for window in windows])
        focus[f"{sigma} um"] = {"auc": round(auc(good, spoilt), 4), "found": float((spoilt > LIMITS.max_blur).mean())}
        print(f"  sigma {sigma} um: AUC {focus[f'{sigma} um']['auc']:.4f}, {focus[f'{sigma} um']['found']:.1%} found")
    tiles, pen, fold, folded, *found = counts.tolist()
    share, *rims = np.mean(bubbles, axis=0).tolist()
    print(f"{tiles // 5} tiles: {pen // 5} lost to pen, {fold // 5} to folds; {share:.2%} of the area to bubbles")
    for layers, number in zip(LAYERS, found, strict=True):
        print(f"  of {folded} tiles mostly on {layers} layers of tissue, {number} found")
    for rim, number in zip(RIMS, rims, strict=True):
        print(f"  of {len(bubbles)} bubbles with a rim of density {rim}, {number:.0%} found")
    lost = {"blur": lost_blur, "pen": pen / tiles, "fold": fold / tiles, "bubble": share}
    result = {
        "windows": len(windows),
        "tiles": tiles,
        "lost": lost,
        "focus": focus,
        "folds_found": {layers: number / max(1, folded) for layers, number in zip(LAYERS, found, strict=True)},
        "bubbles_found": dict(zip(RIMS, rims, strict=True)),
    }
    print(json.dumps({"benchmark": "quality", "ratio": focus["1.0 um"]["auc"], **result}))


if __name__ == "__main__":
    main()
