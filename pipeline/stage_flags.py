"""One stage's share of the configuration, as flags of its command."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.cohort import Drawn, Override
from pipeline.settings import Settings, anchor_options, architecture, model_options, models, plan, private


def flags(
    settings: Settings,
    stage: str,
    *,
    override: Override | None = None,
    drawn: Drawn | None = None,
    model: str | None = None,
) -> str:
    """Write a stage's settings as flags of its command.

    Parameters
    ----------
    stage
        `check`, `tile`, `embed`, `split`, `train`, `agreement`, `predict`, `heatmap` or `report`.
    override
        What the user said of the slide, for the stages that open it.
    drawn
        What the user drew on the slide, for `tile`.
    model
        Which model `train` trains; None: the first.

    Returns
    -------
    Text for a shell, quoted.
    """
    paths, encoder, evaluation = settings["paths"], settings["encoder"], settings["evaluation"]
    # how long a disk may be silent changes no result: rules pass it on as a resource
    scale = _scale(settings)
    slide = {**scale, "mpp": override.mpp if override else None}
    match stage:
        case "check":
            values = {
                **_cohort(settings),
                **scale,
                **{key: paths[key] for key in ("tissue", "roi")},
                **{key: settings["tiling"][key] for key in ("patch_px", "overlap", "max_tiles")},
                "target_mpp": settings["tiling"]["mpp"],
                "encoder": encoder["name"],
                "weights": encoder["weights"],
                "weights_folder": paths["weights"],
            }
        case "tile":
            outlines = drawn or Drawn()
            values = {**_tile(settings), **slide, "drawn_tissue": outlines.tissue, "roi": outlines.roi}
        case "embed":
            values = {
                **slide,
                **_embed(settings),
                "weights": encoder["weights"],
                "weights_folder": paths["weights"],
            }
        case "split":
            values = {
                **_cohort(settings),
                **{key: evaluation[key] for key in ("scheme", "repeats", "validation", "group_by")},
                "seed": settings["seed"],
                "given": paths["splits"] if evaluation["scheme"] == "file" else None,
            }
        case "train":
            name = model or models(settings)[0]
            values = {
                "model": architecture(name),
                "options": _json(model_options(settings, name)),
                "anchor": _json(anchor_options(settings, name)),
                # the memory for features changes no result, so it is not a parameter: see cache_mb
                "training": _json({k: v for k, v in settings["training"].items() if k not in ("cache_gb", "recipe")}),
                **_task(settings),
                "risk_set": settings["survival"]["risk_set"] if settings["task"] == "survival" else None,
                "recipe": settings["training"]["recipe"],
                "preparation": _json({"tile": _tile(settings), "embed": _embed(settings)}),
                "stability_slides": settings["stability"]["slides"],
                "seed": settings["seed"],
            }
        case "agreement":
            values = {
                "slides": settings["stability"]["slides"],
                **_task(settings),
                "colormap": settings["heatmap"]["colormap"],
            }
        case "predict":
            values = dict(settings["decision"])
        case "heatmap":
            values = {**slide, **settings["heatmap"], "private": private(settings)}
        case "report":
            values = {
                "resamples": evaluation["bootstrap_resamples"],
                "method": evaluation["interval"],
                "seed": settings["seed"],
                "models": ",".join(models(settings)),
                "private": private(settings),
            }
        case _:
            raise ValueError(f"stage {stage!r} has no settings")
    return " ".join(_flag(name, value) for name, value in values.items() if value not in (None, "auto"))


def _scale(settings: Settings) -> dict[str, Any]:
    """Give what is known of a slide's scale; how long a slide may stall is no parameter, as it changes no result."""
    return {key: value for key, value in settings["slide"].items() if key != "stalled_after_s"}


def _tile(settings: Settings) -> dict[str, Any]:
    """Give the settings of `tile` that hold for every slide."""
    tiling = settings["tiling"]
    return {
        **_scale(settings),
        **_prefixed("tissue", settings["tissue"]),
        **settings["quality"],
        **{key: tiling[key] for key in ("patch_px", "overlap", "min_tissue", "max_tiles")},
        "target_mpp": tiling["mpp"],
    }


def _embed(settings: Settings) -> dict[str, Any]:
    """Give the settings of `embed` that hold on every machine."""
    encoder = settings["encoder"]
    return {
        "encoder": encoder["name"],
        "precision": encoder["precision"],
        "stain": encoder["stain"],
        "max_unreadable": settings["tiling"]["max_unreadable"],
    }


def _cohort(settings: Settings) -> dict[str, Any]:
    """Give what tells slides and labels, as the commands that read them take it."""
    paths = {key: settings["paths"][key] for key in ("slides", "labels", "overrides")}
    event = settings["survival"]["event"] if settings["task"] == "survival" else None
    return {
        **paths,
        **_task(settings),
        "target": settings["target"],
        "event": event,
        "folds": plan(settings).needed,
    }


def _task(settings: Settings) -> dict[str, Any]:
    return {"task": settings["task"]}


def _prefixed(prefix: str, section: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{key}": value for key, value in section.items()}


def _json(section: Mapping[str, Any]) -> str:
    """Write a section as JSON without what it leaves to the code (`auto`)."""
    return json.dumps({key: value for key, value in section.items() if value != "auto"}, sort_keys=True)


def _flag(name: str, value: object) -> str:
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {shlex.quote(str(value))}"
