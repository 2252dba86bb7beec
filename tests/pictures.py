"""The viewer's file of a slide, as the heatmap stage writes it, on a made-up tissue."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline import drawing, views
from pipeline.maps import Attention, LeftOut, Style
from pipeline.sheet import View
from pipeline.specimens import Specimen

EDGE = 16.0


def write_view(path: Path, *, size: tuple[int, int] = (64, 48), seed: int = 0, folds: int = 2) -> None:
    """Write the file of a slide of `size` (width, height) px at 0.5 um, all tissue, tiled by `EDGE`."""
    width, height = size
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(width // int(EDGE)), np.arange(height // int(EDGE)))
    coords = (np.stack([x.ravel(), y.ravel()], axis=1) * EDGE).astype(np.int32)
    score = rng.dirichlet(np.ones(len(coords)))
    attributes: dict[str, Any] = {
        "patch_level0_px": EDGE,
        "mpp_x": 0.5,
        "classes": ["normal", "tumour"],
        "probabilities": [0.4, 0.6],
    }
    found = Attention(
        score=score[1:],
        percentile=drawing.percentile_ranks(score[1:]),
        coords=coords[1:],
        probability=np.full((folds, 2), 0.5, np.float32),
        attributes=attributes,
        disagreement=np.linspace(0, 30, len(coords) - 1) if folds > 1 else None,
        left_out=LeftOut(coords[:1], np.zeros(1, np.uint8)),
    )
    thumbnail = np.full((height, width, 3), (225, 170, 200), np.uint8)
    view = View(thumbnail, (0, 0, width, height), 0.5)
    style = Style("viridis", 0.5, 1)
    views.write(path, found, view, shown=[Specimen(0, "1", None)], style=style, made_by={})
