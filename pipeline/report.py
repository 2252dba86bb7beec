"""Write what people read of a run: the report, the predictions, the figures of merit, the slides left out.

Importing this module is cheap: the workflow does so to print its closing words.
"""

import csv
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import tables
from pipeline.errors import PipelineError
from pipeline.flags import FLAGS
from pipeline.json_text import JsonError, parse_object
from pipeline.tasks import CLASSIFICATION, HEADLINE, task_of
from pipeline.versions import made_by

if TYPE_CHECKING:
    from pipeline.evaluation import SlideResult
    from pipeline.figures import Interval

logger = logging.getLogger(__name__)

QUARANTINE_COLUMNS = ("slide_id", "stage", "reason", "remedy")
QUARANTINE = "quarantine.tsv"
MAX_NAMED = 5
"""Slides left out that the closing words name; the rest are in the table."""


def run(
    *,
    cohort: Path,
    splits: Path,
    results: Path,
    reports: Path,
    interval: "Interval",
    title: str,
    models: Sequence[str] = (),
    private: Path | None = None,
) -> None:
    """Write `predictions.csv`, `metrics.json`, `quarantine.tsv`, `quality.tsv` and `index.html`.

    Into the folder of trained models, `results/model`, go `metrics.json` and `model_card.md`, so that it can be handed
    over.

    Parameters
    ----------
    cohort, splits
        The tables that `check` and `split` wrote.
    results
        The folder of the artefacts.
    reports
        Where to write; `heatmaps/{slide}.png` are expected there.
    interval
        How intervals over patients are made.
    title
        Heading of the report.
    models
        Names of the models, first that of the predictions; one alone is compared with nothing.
    private
        Folder of the key by which slides and patients are named (see `pseudonyms`), in which the table of names is
        written; None: their own names are shown.

    Raises
    ------
    ArtefactError
        If an artefact is damaged, or contradicts the splits.
    """
    from pipeline import certainty, compare, evaluation, model_card, model_index, pseudonyms, report_page, store

    slides = evaluation.gather(cohort, results)
    assignments = store.read_rows(splits, delimiter=",")
    evaluation.check_held_out(slides, assignments)
    metrics = evaluation.evaluate(slides, assignments, interval=interval)
    if metrics["task"] == CLASSIFICATION:
        metrics["confounding"] = certainty.confounded(cohort)
    if len(models) > 1:
        metrics |= compare.figures(slides, metrics, models=models, folder=results / "compare", interval=interval)
    trained = results / "model"
    if metrics["task"] == CLASSIFICATION:
        _add_temperatures(metrics["folds"], trained)
    show: Callable[[str], str] = str
    if private is not None:
        show = pseudonyms.load(private).slide
        slides = _renamed(slides, cohort, reports, private=private)
    store.write_text(reports / "predictions.csv", predictions_table(slides, metrics["classes"]))
    store.write_text(reports / QUARANTINE, quarantine_table(slides))
    store.write_text(reports / "quality.tsv", quality_table(slides))
    made = made_by("report", parameters={**dataclasses.asdict(interval), "models": list(models)})
    figures = json.dumps({**metrics, "made_by": made}, indent=2, allow_nan=False) + "\n"
    store.write_text(reports / "metrics.json", figures)
    if model_index.folds_of(trained):
        card = model_card.render(
            slides, metrics, cohort=cohort, splits=assignments, models=trained, name_sites=private is None
        )
        store.write_text(trained / "metrics.json", figures)
        store.write_text(trained / "model_card.md", card)
    folders = {name: results / "compare" / name if place else trained for place, name in enumerate(models)}
    page = report_page.render(
        slides,
        metrics,
        title=title,
        reports=reports,
        models=trained,
        folds=sorted({int(row["fold"]) for row in assignments}),
        views=results / "views",
        compared=folders if len(models) > 1 else None,
        agreement={name: results / "agreement" / f"{name}.csv" for name in models},
        show=show,
    )
    store.write_text(reports / "index.html", page)
    logger.info("%s: %d slides, %d left out", reports / "index.html", len(slides), metrics["n_left_out"])


def _add_temperatures(folds: list[dict[str, Any]], models: Path) -> None:
    """Add the temperature that was fitted to each fold's model, where its folder is there."""
    from pipeline import store

    for fold in folds:
        path = models / f"fold-{fold['fold']}" / "model.json"
        if path.exists():
            fold["temperature"] = store.read_json(path)["temperature"]


def _renamed(slides: "Sequence[SlideResult]", cohort: Path, reports: Path, *, private: Path) -> "list[SlideResult]":
    """Give the results under their pseudonyms; write the table of names, and remove what earlier runs named openly."""
    from pipeline import pseudonyms, store

    hashed = pseudonyms.load(private)
    paths: dict[str, str | None] = {row["slide_id"]: row["path"] for row in store.read_rows(cohort, delimiter="\t")}
    pseudonyms.write_table(private, hashed, slides=paths, patients=[slide.patient_id for slide in slides])
    pseudonyms.remove_named(reports / "heatmaps")
    return pseudonyms.mask_results(slides, hashed, paths)


def predictions_table(slides: "Sequence[SlideResult]", classes: Sequence[str]) -> str:
    """Give `predictions.csv`: a row a slide, empty cells where there is no prediction."""
    from pipeline import outcomes, prediction_columns

    task = outcomes.task_of(slides)
    own = outcomes.prediction_columns(task) or [f"probability_{name}" for name in classes]
    header = ["slide_id", "patient_id", "label", "predicted", *own]
    rows: list[list[str]] = []
    for slide in slides:
        known = [slide.slide_id, slide.patient_id, slide.label]
        found = slide.prediction
        if found is None:
            cells = outcomes.prediction_cells(slide, task=task) if task != CLASSIFICATION else ["" for _ in classes]
            row = [*known, "", *cells, "", "", slide.status]
        else:
            numbers = [f"{probability:.6f}" for probability in found.probabilities]
            numbers += outcomes.prediction_cells(slide, task=task) if task != CLASSIFICATION else []
            spread = f"{found.fold_spread:.6f}"
            row = [*known, found.predicted, *numbers, found.source, spread, slide.status]
        rows.append([*row, *prediction_columns.cells(slide, classes, task=task)])
    header += ["source", "fold_spread", "status", *prediction_columns.columns(classes, task=task)]
    return _table([header, *rows], delimiter=",")


def quarantine_table(slides: "Sequence[SlideResult]") -> str:
    """Give `quarantine.tsv`: which slides were left out, at which stage, why, and what to do."""
    rows = [[slide.slide_id, slide.stage, slide.reason, slide.remedy] for slide in slides if slide.prediction is None]
    return _table([QUARANTINE_COLUMNS, *rows], delimiter="\t")


def quality_table(slides: "Sequence[SlideResult]") -> str:
    """Give `quality.tsv`: of each slide with a prediction, the tiles used and those left out by flag."""
    rows = [
        [slide.slide_id, str(slide.patches), *(str(slide.excluded.get(flag, 0)) for flag in FLAGS)]
        for slide in slides
        if slide.prediction is not None
    ]
    return _table([["slide_id", "used", *FLAGS], *rows], delimiter="\t")


def _table(rows: Iterable[Sequence[str]], *, delimiter: str) -> str:
    return tables.text(([tables.flat(cell) for cell in row] for row in rows), delimiter=delimiter)


def quarantined(table: Path) -> list[dict[str, str]]:
    """Read `quarantine.tsv`: one dict a slide that was left out."""
    return tables.rows(table, delimiter="\t")


def check_none_quarantined(table: Path) -> None:
    """Raise a PipelineError that names the slides if `quarantine.tsv` has any: what `strict: true` asks for."""
    left_out = [row["slide_id"] for row in quarantined(table)]
    if left_out:
        more = f" and {len(left_out) - MAX_NAMED} more" if len(left_out) > MAX_NAMED else ""
        raise PipelineError(
            f"strict is true and {len(left_out)} slide(s) were quarantined: {', '.join(left_out[:MAX_NAMED])}{more};"
            f" see {table}, or set strict to false"
        )


def summary(reports: Path) -> str:
    """Give the closing words of a run, a few lines for the screen.

    Parameters
    ----------
    reports
        The folder that `run` wrote; without a report in it, or with a damaged one, the words say so.
    """
    try:
        metrics = parse_object((reports / "metrics.json").read_bytes())
        left_out = quarantined(reports / QUARANTINE)
        return "\n".join(_summary(metrics, left_out, reports))
    except FileNotFoundError:
        return f"No report in {reports} yet."
    except (JsonError, csv.Error, UnicodeDecodeError, LookupError, TypeError) as error:
        return (
            f"The report in {reports} is damaged ({error}); delete its metrics.json and {QUARANTINE}, and run the same"
            " command again."
        )


def _summary(metrics: dict[str, Any], left_out: Sequence[Mapping[str, str]], reports: Path) -> list[str]:
    lines = [f"{metrics['n_predicted']} of {metrics['n_cohort']} slides predicted, {len(left_out)} left out."]
    lines += [f"  {row['slide_id']}: {row['reason']}; {row['remedy']}." for row in left_out[:MAX_NAMED]]
    if len(left_out) > MAX_NAMED:
        lines.append(f"  and {len(left_out) - MAX_NAMED} more in {reports / QUARANTINE}")
    lines.append(_performance(metrics))
    lines.append(f"Report:      {reports / 'index.html'}")
    lines.append(f"Predictions: {reports / 'predictions.csv'}")
    return lines


def _performance(metrics: dict[str, Any]) -> str:
    task = task_of(metrics)
    metric, name = HEADLINE[task]
    found = metrics["pooled"].get(metric, {"value": None})
    if found["value"] is None:
        needs = {"classification": "of at least two classes", "survival": "whose order of events is known"}
        return f"No {name}: it needs labelled slides{f' {needs[task]}' if task in needs else ''}."
    interval = ""
    if found["low"] is not None and found["high"] is not None:
        interval = f" ({metrics['interval']['level']:.0%} interval {found['low']:.3f} to {found['high']:.3f})"
    return (
        f"Out-of-fold {name} {found['value']:.3f}{interval}, "
        f"{metrics['n_slides']} labelled slides of {metrics['n_patients']} patients."
    )
