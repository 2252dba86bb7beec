"""The report's part on training: how attention and the loss moved from epoch to epoch, a line a model."""

import csv
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asmil.options import UNIFORM_ENTROPY, WARM_UP_EPOCHS
from pipeline import checksums
from pipeline.charts import MOST_LINES, Line, line_chart

Record = dict[str, NDArray[np.float64]]
"""One model's `stability.csv`, and the anchor's part of its `history.csv`: a column an array; NaN for an empty cell."""

SETTLED = 5
"""Last epochs that the table averages over."""

DASH = "\N{EN DASH}"

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
        "On slides of the inner validation part, nats an event; the epoch kept is the one of the best concordance, or"
        " the last where no two of the slides have a known order.",
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

_ANCHOR_COLUMNS = (
    ("anchor_kl", "Anchor: KL"),
    ("anchor_target_entropy", "Target entropy / log N"),
    ("anchor_positive_share", "Share of z\N{PRIME} > 0"),
)
"""Of `history.csv`; shown where a model was trained with an anchor."""


def read(models: Path, folds: Iterable[int]) -> dict[int, Record]:
    """Read the stability record of each fold's model below `models`; folds that followed no slide are left out."""
    records = {}
    for fold in folds:
        path = models / f"fold-{fold}" / "stability.csv"
        if not path.exists():
            continue
        checksums.check(path)
        columns = _columns(path)
        if not columns:
            continue
        history = path.with_name("history.csv")
        if history.exists():
            checksums.check(history)
            columns |= {name: values for name, values in _columns(history).items() if name.startswith("anchor_")}
        records[fold] = columns
    return records


def _columns(path: Path) -> Record:
    with path.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return {name: np.array([float(row[name] or math.nan) for row in rows]) for name in (rows[0] if rows else ())}


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
    settled = {name: _settled([record]) for name, record in by_fold.items()}
    # each fold's own last epochs: one that stopped early would otherwise cut all to its length
    settled |= {f"{name}, mean": _settled(list((compared or {})[name].values())) for name in by_model}
    columns = [*_COLUMNS, *(_ANCHOR_COLUMNS if any("anchor_kl" in record for record in settled.values()) else ())]
    return {
        "charts": [*_charts(by_fold), *_charts(by_model, of=" of each model, mean of its folds")],
        "columns": [label for _, label in columns],
        "rows": [
            (name, [brief(record[column]) if column in record else DASH for column, _ in columns])
            for name, record in settled.items()
        ],
        "slides": int(max(record["slides"].max() for record in records.values())),
        "settled": SETTLED,
        "flattened": [
            *(name for name in by_fold if _only_flattens(settled[name])),
            *(name for name in list(by_model)[1:] if _only_flattens(settled[f"{name}, mean"])),
        ],
    }


def _settled(records: Sequence[Record]) -> Record:
    """Give the last epochs of some folds' records, one after the other."""
    columns = set.intersection(*(set(record) for record in records))
    return {name: np.concatenate([record[name][-SETTLED:] for record in records]) for name in columns}


def _only_flattens(settled: Record) -> bool:
    """Whether the target of an anchor was uniform at the end of a training that was long enough to tell.

    The control that has a uniform target by intent has no anchor, whose logits could be positive.
    """
    if "anchor_positive_share" not in settled:
        return False
    entropy = settled["anchor_target_entropy"][settled["epoch"] > WARM_UP_EPOCHS]
    known = entropy[~np.isnan(entropy)]
    return len(known) > 0 and float(known.mean()) > UNIFORM_ENTROPY


def brief(values: NDArray[np.float64]) -> str:
    """Write the mean of the values that are known, in three digits; a dash where there is none."""
    known = values[~np.isnan(values)]
    if len(known) == 0:
        return DASH
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
        for name, record in list(records.items())[:MOST_LINES]
        for x, y in [_known(record["epoch"], record[column])]
        if len(x)
    ]
    if len(records) > MOST_LINES:
        note += f" The first {MOST_LINES} of {len(records)} models."
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
