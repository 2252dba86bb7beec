"""The report's part on how alike the maps of the folds' models are (`pipeline.agreement`)."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import store
from pipeline.stability_page import brief

COLUMNS = ("Rank correlation", "Lowest", "Held-out pairs", "JSD", "Top 1 % in common", "Entropy / log N")

_UNSEEN = ("test", "")
"""Roles of a slide that a model learned nothing from; the second of one that its fold leaves out."""

_ENTROPIES = (("fold", "entropy"), ("other_fold", "other_entropy"))

_USES = {"test": "held it out", "train": "trained on it", "validation": "chosen by it", "": "did not use it"}


def render(tables: Mapping[str, Path], *, show: Callable[[str], str] = str) -> dict[str, Any] | None:
    """Give what the template shows; None where no slide was compared.

    Parameters
    ----------
    tables
        What `pipeline.agreement.run` wrote, by model, with the maps beside it; first the model that predicts, whose
        slides are shown one by one. Of others the mean over the slides is.
    show
        Gives the name that the report shows for a slide.
    """
    slides = {name: _cells(path) for name, path in tables.items()}
    first = next(iter(tables), "")
    if not slides.get(first):
        return None
    drawn = store.read_json(tables[first].with_suffix(".json"))
    return {
        "columns": list(COLUMNS),
        "rows": sorted((show(slide), _mean([cells])) for slide, cells in slides[first].items()),
        "models": [(name, _mean(list(each.values()))) for name, each in slides.items() if each and len(slides) > 1],
        "folds": len(drawn["folds"]),
        "drawn": show(drawn["slide_id"]),
        "maps": [
            (fold, _USES[role], image)
            for fold, role, image in zip(drawn["folds"], drawn["roles"], drawn["images"], strict=True)
        ],
    }


def _cells(table: Path) -> dict[str, list[float]]:
    """Give the figures of `COLUMNS` by slide, NaN where one is not known; none where there is no table."""
    of_slide: dict[str, list[dict[str, str]]] = {}
    for row in store.read_rows(table, delimiter=",") if table.exists() else ():
        of_slide.setdefault(row["slide_id"], []).append(row)
    found = {}
    for slide, rows in of_slide.items():
        correlation, jsd, top = (_numbers(rows, column) for column in ("spearman", "jsd", "top1_jaccard"))
        held_out = [row for row in rows if row["role"] in _UNSEEN or row["other_role"] in _UNSEEN]
        by_fold = {row[fold]: row[name] for row in rows for fold, name in _ENTROPIES}
        entropy = np.array([float(value) for value in by_fold.values()])
        lowest = correlation[[int(correlation.argmin())]] if len(correlation) else correlation
        kinds = (correlation, lowest, _numbers(held_out, "spearman"), jsd, top, entropy)
        found[slide] = [float(values.mean()) if len(values) else math.nan for values in kinds]
    return found


def _numbers(rows: Sequence[Mapping[str, str]], column: str) -> NDArray[np.float64]:
    return np.array([float(row[column]) for row in rows if row[column]], dtype=np.float64)


def _mean(slides: Sequence[Sequence[float]]) -> list[str]:
    return [brief(column) for column in np.array(slides, dtype=np.float64).T]
