"""The report's part on training: how attention and the loss moved by epoch, and how alike the folds' maps are."""

import csv
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import checksums, store
from pipeline.charts import COLOURS, Line, line_chart

Record = dict[str, NDArray[np.float64]]
"""One model's `stability.csv`: a column an array; NaN where a cell is empty."""

SETTLED = 5
"""Last epochs that the table averages over."""

_CHARTS = (
    (
        "jsd_lag1",
        "Movement of attention",
        "JSD to the epoch before",
        "Jensen-Shannon divergence between neighbouring epochs on the same slides, 0 (still) to 1; read it beside the"
        " entropy, as uniform attention never moves, and beside the learning rate, as a falling one stops every model.",
    ),
    (
        "entropy",
        "Concentration of attention",
        "Entropy / log N",
        "1: every patch weighs the same. Near 0: a few patches carry the slide.",
    ),
    (
        "validation_cross_entropy",
        "Validation loss",
        "Cross-entropy, nats",
        "On slides of the inner validation part; the epoch kept is the one of best macro F1 and AUROC on them.",
    ),
    (
        "validation_partial_likelihood",
        "Validation loss",
        "Negative log partial likelihood",
        "On slides of the inner validation part, nats an event; the epoch kept is the one of the best concordance.",
    ),
    (
        "validation_squared_error",
        "Validation loss",
        "Squared error",
        "On slides of the inner validation part, in sd of the training labels; the epoch kept has the least mean"
        " absolute error.",
    ),
)

_COLUMNS = (
    ("jsd_lag1", "JSD lag 1"),
    ("jsd_lag5", "JSD lag 5"),
    ("spearman_lag1", "Rank correlation lag 1"),
    ("top1_jaccard_lag1", "Top 1 % kept"),
    ("entropy", "Entropy / log N"),
    ("effective_patches", "Effective patches"),
    ("top10_mass", "On ten patches"),
)


def read(models: Path) -> dict[int, Record]:
    """Read the stability record of every fold's model below `models`; folds that followed no slide are left out."""
    records = {}
    for path in models.glob("fold-*/stability.csv"):
        checksums.check(path)
        with path.open(encoding="utf-8", newline="") as handle:
            rows = list(csv.DictReader(handle))
        if rows:
            columns = {name: np.array([float(row[name] or math.nan) for row in rows]) for name in rows[0]}
            records[int(path.parent.name.removeprefix("fold-"))] = columns
    return dict(sorted(records.items()))


def render(
    records: Mapping[int, Record], compared: Mapping[str, Mapping[int, Record]] | None = None
) -> dict[str, Any] | None:
    """Give what the report's template shows: charts, and a row a model; None where there is no record.

    Parameters
    ----------
    records
        By fold, of the model that predicts.
    compared
        By name, of all models that are compared; each is shown as the mean of its folds.
    """
    if not records:
        return None
    by_fold = {f"fold {fold}": record for fold, record in records.items()}
    by_model = {name: _mean(list(each.values())) for name, each in (compared or {}).items() if each}
    if len(by_model) < 2:
        by_model = {}
    return {
        "charts": [*_charts(by_fold), *_charts(by_model, of=" of each model, mean of its folds")],
        "columns": [label for _, label in _COLUMNS],
        "rows": [
            (name, [_figure(record[column]) for column, _ in _COLUMNS])
            for name, record in {**by_fold, **{f"{name}, mean": record for name, record in by_model.items()}}.items()
        ],
        "slides": int(max(record["slides"].max() for record in records.values())),
        "settled": SETTLED,
    }


_PAIR_COLUMNS = (
    "Rank correlation, mean of pairs",
    "Lowest pair",
    "Of the model that held it out",
    "JSD",
    "Top 1 % in common",
)


def agreement(
    models: Path, compared: Mapping[str, Path] | None = None, *, show: Callable[[str], str] = str
) -> dict[str, Any] | None:
    """Give what the template shows of how alike the folds' maps are (`pipeline.agreement`); None where it is not known.

    Parameters
    ----------
    models
        The folder of the model that predicts.
    compared
        The same of all models that are compared, by name; each is shown as the mean over the slides.
    show
        Gives the name that the report shows for a slide.
    """
    of_slides = _pairs(models)
    if not of_slides:
        return None
    by_model = {name: _pairs(folder) for name, folder in (compared or {}).items()}
    means = [(name, _mean_cells(list(each.values()))) for name, each in by_model.items() if each]
    drawn = store.read_json(models / "agreement.json")
    uses = {"test": "held it out", "train": "trained on it", "validation": "chosen by it"}
    return {
        "columns": list(_PAIR_COLUMNS),
        "rows": sorted(
            (show(name), [_figure(np.array([cell])) for cell in cells]) for name, cells in of_slides.items()
        ),
        "models": means if len(means) > 1 else [],
        "folds": len(drawn["folds"]),
        "drawn": show(drawn["slide_id"]),
        "maps": [
            (fold, uses.get(role, "did not use it"), image)
            for fold, role, image in zip(drawn["folds"], drawn["roles"], drawn["images"], strict=True)
        ],
    }


def _pairs(models: Path) -> dict[str, list[float]]:
    """Give the cells of `_PAIR_COLUMNS` by slide; NaN where nothing is known, none where no slides were compared."""
    path = models / "agreement.csv"
    of_slide: dict[str, list[dict[str, str]]] = {}
    for row in store.read_rows(path, delimiter=",") if path.exists() else ():
        of_slide.setdefault(row["slide_id"], []).append(row)
    found = {}
    for name, rows in of_slide.items():
        correlation, jsd, top = (_numbers(rows, column) for column in ("spearman", "jsd", "top1_jaccard"))
        held_out = _numbers([row for row in rows if "test" in (row["role"], row["other_role"])], "spearman")
        lowest = float(np.min(correlation, initial=math.inf))
        cells = [_known_mean(correlation), lowest, _known_mean(held_out), _known_mean(jsd), _known_mean(top)]
        found[name] = [cell if math.isfinite(cell) else math.nan for cell in cells]
    return found


def _numbers(rows: Sequence[Mapping[str, str]], column: str) -> NDArray[np.float64]:
    return np.array([float(row[column]) for row in rows if row[column]], dtype=np.float64)


def _known_mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _mean_cells(slides: Sequence[Sequence[float]]) -> list[str]:
    return [_figure(np.array([_known_mean(column)])) for column in np.array(slides, dtype=np.float64).T]


def _figure(values: NDArray[np.float64]) -> str:
    known = values[-SETTLED:][~np.isnan(values[-SETTLED:])]
    if len(known) == 0:
        return "\N{EN DASH}"
    mean = float(known.mean())
    return f"{mean:.0f}" if mean >= 100 else f"{mean:.3g}" if abs(mean) >= 0.001 or mean == 0 else f"{mean:.1e}"


def _mean(records: Sequence[Record]) -> Record:
    """Give the mean of some folds' records over the epochs that all of them have."""
    epochs = min(len(record["epoch"]) for record in records)
    columns = set.intersection(*(set(record) for record in records))
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # a lag that no fold has yet: NaN, as there
        return {name: np.nanmean([record[name][:epochs] for record in records], axis=0) for name in columns}


def _charts(records: Mapping[str, Record], *, of: str = "") -> list[dict[str, Any]]:
    known = [chart for chart in _CHARTS if records and all(chart[0] in record for record in records.values())]
    return [_chart(records, column, f"{title}{of}", y_label, note) for column, title, y_label, note in known]


def _chart(records: Mapping[str, Record], column: str, title: str, y_label: str, note: str) -> dict[str, Any]:
    last = max(float(record["epoch"].max()) for record in records.values())
    top = 1.0 if column == "entropy" else _ceiling([record[column] for record in records.values()])
    lines = [
        Line(name, x, y)
        for name, record in list(records.items())[: len(COLOURS)]
        for x, y in [_known(record["epoch"], record[column])]
        if len(x)
    ]
    if len(records) > len(COLOURS):
        note += f" The first {len(COLOURS)} of {len(records)} models."
    plot = line_chart(
        lines,
        title=f"{title}, by epoch",
        x_label="Epoch",
        y_label=y_label,
        x_range=(0.0, last),
        y_range=(0.0, top),
    )
    return {"title": title, "figure": plot, "note": note}


def _known(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return x[~np.isnan(y)], y[~np.isnan(y)]


def _ceiling(columns: Sequence[NDArray[np.float64]]) -> float:
    """Give the smallest of 1, 2, 4, 5, 8 times a power of ten that no value exceeds."""
    values = np.concatenate(columns)
    largest = float(np.nanmax(values)) if not np.isnan(values).all() else 0.0
    if largest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next(step * power for step in (1, 2, 4, 5, 8, 10, 20) if step * power >= largest)
