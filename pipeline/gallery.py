"""The report's gallery: a card a slide, and the pictures that it and the viewer show."""

import base64
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline import store
from pipeline.evaluation import SlideResult

INLINE_BYTES = 20_000_000
"""Pictures beyond this size lie beside the page, so that it opens at once however many slides there are."""
PICTURES = "slides"
"""Folder of the pictures beside the page."""

FLAGS = ("abstained", "out of distribution", "folds disagree", "much left out", "warning")
"""Reasons to look at a slide again, as `flags` gives them."""
MUCH = 0.1
"""Share of tiles left out from which on that is a flag."""

AGREES, DIFFERS, SEEN, UNLABELLED, LEFT_OUT = "right", "wrong", "seen", "unlabelled", "left-out"


@dataclass(frozen=True)
class Pictures:
    """The pictures of all slides.

    Parameters
    ----------
    thumbnails
        What the `src` of a card's picture is, by slide.
    inline
        The viewer's content as JSON text, by slide; empty where the pictures lie beside the page.
    beside
        The folder beside the page in which they lie; empty where they are in it.
    """

    thumbnails: Mapping[str, str] = field(default_factory=dict)
    inline: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""


def pictures(views: Path, slides: Sequence[str], *, reports: Path) -> Pictures:
    """Take in the viewer's files, or put their content beside the page where they are many.

    Parameters
    ----------
    views
        Folder with a `{slide}.json` for each slide, as `views.write` makes them; a missing one is left out.
    slides
        Names of the slides.
    reports
        Folder of the page; its folder `slides` is written or removed.
    """
    files = {slide: path for slide in slides if (path := views / f"{slide}.json").exists()}
    size = sum(path.stat().st_size for path in files.values())
    folder = reports / PICTURES
    if folder.exists():
        shutil.rmtree(folder)
    thumbnails, inline = {}, {}
    for slide, path in files.items():
        content, text = store.read_json(path), path.read_text(encoding="utf-8")
        if "thumbnail" not in content:
            continue
        if size <= INLINE_BYTES:
            thumbnails[slide], inline[slide] = content["thumbnail"], text
            continue
        # a script, as a page opened from a file may load one from beside it but may not read any other file
        store.write_text(folder / f"{slide}.js", f"showSlide({json.dumps(slide)}, {text});\n")
        with store.replacing(folder / f"{slide}.jpg") as part:
            part.write_bytes(base64.b64decode(content["thumbnail"].partition(",")[2]))
        thumbnails[slide] = f"{PICTURES}/{quote(slide)}.jpg"
    return Pictures(thumbnails, inline, "" if size <= INLINE_BYTES else PICTURES)


def card(slide: SlideResult, heatmaps: Path) -> dict[str, Any]:
    """Give what the template shows of one slide."""
    found = slide.prediction
    if found is None:
        verdict = LEFT_OUT
    elif found.source == "seen":
        verdict = SEEN
    elif slide.agrees is None:
        verdict = UNLABELLED
    else:
        verdict = AGREES if slide.agrees else DIFFERS
    picture = heatmaps / f"{slide.slide_id}.png"
    probability = max(found.probabilities, default=2.0) if found else 2.0
    return {
        "slide": slide,
        "verdict": verdict,
        "page": f"heatmaps/{quote(picture.name)}" if picture.exists() else "",
        "probability": probability,
        "spread": found.fold_spread if found else -1.0,
        "order": re.sub(r"\d+", lambda digits: digits[0].zfill(8), slide.slide_id.lower()),
        "flags": flags(slide),
        "details": details(slide),
        "models": len(found.folds) if found else 0,
    }


def flags(slide: SlideResult) -> list[str]:
    """Say in a few words what is a reason to look at a slide again: some of `FLAGS`."""
    found = slide.prediction
    if found is None:
        return []
    lost, reason = sum(slide.excluded.values()), found.decision_reason
    holds = (
        found.decision == "abstained",
        "out of distribution" in reason or found.ood_score > 1.0,
        "folds disagree" in reason,
        bool(lost) and lost >= MUCH * (lost + slide.patches),
        bool(slide.warnings),
    )
    return [flag for flag, applies in zip(FLAGS, holds, strict=True) if applies]


def details(slide: SlideResult) -> list[tuple[str, str]]:
    """Give what the viewer says of a slide beside its prediction: name and value."""
    found = slide.prediction
    if found is None:
        return []
    rows = [(f"P({name})", f"{value:.3f}") for name, value in zip(found.classes, found.probabilities, strict=False)]
    if found.calibrated:
        values = zip(found.classes, found.calibrated, strict=True)
        rows.append(("Calibrated", ", ".join(f"{name} {value:.2f}" for name, value in values)))
    if found.decision:
        why = f" ({found.decision_reason})" if found.decision_reason else ""
        rows.append(("Decision", f"{found.decision}{why}"))
    models = len(found.folds)
    drawn = {"out_of_fold": "models that never saw it", "ensemble": "the ensemble", "seen": "models trained on it"}
    rows.append(("Drawn by", f"{drawn[found.source]} ({models} model{'' if models == 1 else 's'})"))
    if models > 1:
        rows.append(("Spread", f"sd {found.fold_spread:.3f} over the models"))
    if not math.isnan(found.map_agreement):
        rows.append(("Maps", f"rank correlation {found.map_agreement:.2f} between the models' maps"))
    if not math.isnan(found.ood_score):
        rows.append(("Unlike training", f"{found.ood_score:.2f} of the limit"))
    rows.append(("Patches", f"{slide.patches:,}"))
    rows += [("Warning", warning) for warning in slide.warnings]
    return rows
