"""How alike the maps are that the models of all folds draw of the same labelled slides."""

import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmil.inference import predict
from asmil.stability import entropy_share, jensen_shannon, spearman, top_overlap
from pipeline import bag_index, drawing, store, tables
from pipeline.maps import Attention, Layer
from pipeline.model_folder import load_model
from pipeline.sheet import View
from pipeline.split import Assignment, read_splits
from pipeline.stored_bags import Cache, StoredBags
from pipeline.tasks import CLASSIFICATION
from pipeline.train import choose_panel
from pipeline.versions import made_by
from pipeline.views import layer_picture

log = logging.getLogger(__name__)

COLUMNS = (
    *("slide_id", "patches", "fold", "other_fold", "role", "other_role"),
    *("spearman", "jsd", "top1_jaccard", "entropy", "other_entropy"),
)

MOST_FOLDS = 20
"""Folds that are compared: pairs grow with their square, and the report shows a map of each."""

DRAWN_PX = 240
"""Longest edge of the picture of a fold's map."""

Scores = NDArray[np.float32]


def run(
    *,
    splits: Path,
    index: Path,
    bags: Path,
    models: Path,
    table: Path,
    maps: Path,
    slides: int,
    task: str,
    colormap: str,
    device: str,
) -> None:
    """Draw some labelled slides by the models of all folds, and compare their maps in pairs.

    Of a labelled slide all maps but one come from models that learned from it or were chosen by it: they may agree more
    than on a new slide, and `role` says which is which.

    Parameters
    ----------
    splits, index, bags
        The splits file, the index of the bags (`pipeline.bag_index`), and their folder.
    models
        The folder with a `fold-{k}` for each fold; those of the first repeat are used, at most `MOST_FOLDS`.
    table
        CSV to write, a row a slide and pair of folds, see `COLUMNS`: what each fold used the slide for; between the
        two maps the rank correlation, the Jensen-Shannon divergence / ln 2 and the Jaccard index of the top 1 %; and
        the entropy / log N of each, as uniform maps do not differ either. A cell is empty where a measure is not
        defined, as with models that weigh all patches alike.
    maps
        JSON to write: the maps of one of these slides, by fold, as pictures.
    slides
        How many slides, of every class in turn; 0 compares none. As where attention is followed from epoch to epoch,
        no more than `train.PANEL_PATCHES` patches in all.
    task
        What the labels are.
    colormap
        A matplotlib colour map.
    device
        `cpu` or `cuda`.

    Raises
    ------
    ArtefactError
        If a model was trained on bags made otherwise.
    """
    rows = read_splits(splits)
    repeat = min(row.repeat for row in rows)
    folds = sorted({row.fold for row in rows if row.repeat == repeat})[:MOST_FOLDS]
    order = bag_index.digests(index)
    panel = _panel(rows, order, bags=bags, slides=slides, task=task) if len(folds) > 1 else []
    loaded = {fold: load_model(models / f"fold-{fold}") for fold in folds} if panel else {}
    roles = {(row.slide_id, row.fold): row.role for row in rows}
    lines: list[list[object]] = [list(COLUMNS)]
    found: dict[str, Any] = {"made_by": made_by("agreement", parameters={"slides": slides, "colormap": colormap})}
    for slide in panel:
        bag = store.read(bags / f"{slide}.zarr.zip", ["features", "coords"])
        scores = {}
        for fold, (model, description) in loaded.items():  # the bag is read once, and standardised by each
            description.check_bag(bag.attributes, folder=models / f"fold-{fold}")
            features = description.standardised(bag.arrays["features"])
            scores[fold] = predict(model, features, device=device, name=slide).score
        own = {fold: roles.get((slide, fold), "") for fold in folds}
        for one, other in itertools.combinations(folds, 2):
            pair = [slide, len(scores[one]), one, other, own[one], own[other]]
            lines.append([*pair, *_measures(scores[one], scores[other])])
        if slide == panel[0]:
            images = _pictures(bag, list(scores.values()), colormap=colormap)
            found |= {"slide_id": slide, "folds": folds, "roles": list(own.values()), "images": images}
    store.write_text(table, tables.text(lines, delimiter=","))
    store.write_text(maps, json.dumps(found))
    log.info("%s: %d slides by %d folds", table, len(panel), len(folds))


def _panel(rows: Sequence[Assignment], order: Mapping[str, str], *, bags: Path, slides: int, task: str) -> list[str]:
    """Choose the slides, the same whatever the folds are.

    By their digests and not by their names: the choice must not tell who knows the names which pseudonym is whose.
    """
    if not slides:
        return []
    one_each = {row.slide_id: row for row in sorted(rows, key=lambda row: order[row.slide_id])}
    classes = sorted({row.label for row in rows}) if task == CLASSIFICATION else []
    known = StoredBags(list(one_each.values()), folder=bags, classes=classes, cache=Cache(0), task=task)
    return [known.rows[index].slide_id for index in choose_panel(known, slides=slides)]


def _measures(one: Scores, other: Scores) -> list[object]:
    """Give the measures of two maps, empty where one is not defined."""
    measures = [spearman(one, other), float(jensen_shannon(one, other)), top_overlap(one, other)]
    measures += [float(entropy_share(one)), float(entropy_share(other))]
    return ["" if math.isnan(value) else value for value in measures]


def _pictures(bag: store.Artefact, scores: Sequence[Scores], *, colormap: str) -> list[str]:
    """Draw the maps of one slide, without the slide: data URLs."""
    coords, edge_px = bag.arrays["coords"], float(bag.attributes["patch_level0_px"])
    left, top = coords.min(axis=0).tolist()
    width, height = (coords.max(axis=0) - coords.min(axis=0) + edge_px).tolist()
    scale = DRAWN_PX / max(width, height)
    shape = (max(1, round(height * scale)), max(1, round(width * scale)), 3)
    view = View(np.zeros(shape, np.uint8), (left, top, width, height), 1.0)
    images = []
    for score in (each.astype(np.float64) for each in scores):
        ranks = drawing.percentile_ranks(score)
        drawn = Attention(score, ranks, coords, np.empty((0, 0), np.float32), {"patch_level0_px": edge_px})
        layer = Layer("", ranks, colormap, "", "")
        images.append(str(layer_picture(drawn, view, layer)["image"]))
    return images
