"""The configuration: checked against its schema, resolved against the encoder, and cut into one stage's share.

Only the Snakefile uses this module with the whole configuration; a stage gets its own settings as flags.
"""

import contextlib
import difflib
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import cohort as cohorts
from pipeline import encoders, json_text, tasks
from pipeline.cohort import Cohort, Drawn, Override
from pipeline.device import has_gpu
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint

if TYPE_CHECKING:
    from pipeline.schemes import Plan

Settings = dict[str, Any]


def check(config: Mapping[str, Any], schema: Path) -> Settings:
    """Check a configuration, and fill in what it leaves to the encoder (`auto`).

    Parameters
    ----------
    config
        The configuration with all defaults, as Snakemake merged it.
    schema
        JSON Schema of the configuration, as YAML.

    Returns
    -------
    A copy in which `tiling.mpp` and `tiling.patch_px` are numbers and `encoder.weights` is a path or None.

    Raises
    ------
    ConfigError
        If a key is unknown or missing, a value has the wrong type or is out of range, or the scale is not the
        encoder's.
    """
    rules = yaml.safe_load(schema.read_text(encoding="utf-8"))
    settings: Settings = _typed(config, rules)
    validate(settings, rules)
    _check_model(settings)
    tasks.check_models(models(settings), task=settings["task"])
    _check_colormap(settings["heatmap"]["colormap"])
    return _resolve_scale(settings)


def _typed(value: Any, schema: Mapping[str, Any]) -> Any:
    """Read numbers, booleans and nulls that arrived as text: `1e-4` in YAML, and all that --config passes in braces."""
    if isinstance(value, Mapping):
        properties = schema.get("properties", {})
        return {name: _typed(item, properties.get(name, {})) for name, item in value.items()}
    options = schema.get("anyOf", [schema])
    kinds = {option.get("type") for option in options}
    if isinstance(value, str) and kinds & {"integer", "number", "boolean", "null"}:
        with contextlib.suppress(json_text.JsonError):
            return json_text.parse(value)
    # NaN and infinity pass every comparison of a schema; as text they are refused
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def validate(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raise a ConfigError of one sentence for the first thing in `config` that `schema` does not allow."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(schema)
    found = sorted(
        validator.iter_errors(config),
        key=lambda error: (error.validator != "additionalProperties", str(error.json_path)),
    )
    if not found:
        return
    error = found[0]
    place = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(name for name in error.instance if name not in known)
        near = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here are {', '.join(known)}"
        raise ConfigError(f"config: unknown key '{'.'.join(filter(None, (place, str(unknown))))}'; {hint}")
    if error.validator == "required":
        raise ConfigError(
            f"config: {error.message.replace(' is a required property', ' is missing')}"
            f" in {place or 'the configuration'}; see config.yaml for the default"
        )
    raise ConfigError(f"config: {place} is {error.instance!r}; it must be {expected(error.schema)}")


def expected(schema: Mapping[str, Any]) -> str:
    """Say in words what the schema of one key allows, as in `a number above 0 and at most 1`."""
    if "enum" in schema:
        return "one of " + ", ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(expected(option) for option in schema["anyOf"])
    if "items" in schema:
        return f"a list, each {expected(schema['items'])}"
    if "const" in schema:
        return str(schema["const"])
    if "pattern" in schema:
        return f"text like {schema['pattern']}"
    kinds = {
        "integer": "a whole number",
        "number": "a number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
        "object": "a section",
        "array": "a list",
    }
    words = kinds[schema["type"]] if isinstance(schema.get("type"), str) else "another value"
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [f"{text} {schema[key]}" for key, text in bounds.items() if key in schema]
    return f"{words} {' and '.join(limits)}".strip()


def _check_model(settings: Settings) -> None:
    """Refuse options of ASMIL that do not fit each other, which a schema of single keys cannot see."""
    options = settings["asmil"]
    if options["d_inner"] != "auto" and options["d_inner"] % options["heads"]:
        raise ConfigError(
            f"config: asmil.d_inner is {options['d_inner']}, no multiple of the {options['heads']} heads; change one"
        )
    dropped = str(options["token_drop"]).removeprefix("fixed:")
    if dropped.isdigit() and int(dropped) >= options["tokens"]:
        raise ConfigError(
            f"config: asmil.token_drop is {options['token_drop']} of {options['tokens']} tokens; one must be kept"
        )


def _check_colormap(name: str) -> None:
    if name in ("viridis", "cividis"):  # the usual ones are known without importing matplotlib each time
        return
    from matplotlib import colormaps

    if name not in colormaps:
        near = difflib.get_close_matches(name, list(colormaps), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "choose viridis, cividis or another of matplotlib"
        raise ConfigError(f"config: heatmap.colormap is '{name}', which matplotlib does not know; {hint}")


def _resolve_scale(settings: Settings) -> Settings:
    encoder, tiling = settings["encoder"], settings["tiling"]
    spec = _encoder(settings)
    for key, own, unit in (("patch_px", spec.patch_px, "px"), ("mpp", spec.mpp, "um/px")):
        if tiling[key] == "auto":
            if own is None:
                raise ConfigError(
                    f"config: {encoder['name']} does not say its {key}; set tiling.{key} to a number ({unit})"
                )
            tiling[key] = own
        elif (
            own is not None
            and not spec.any_scale
            and not (tiling[key] == own or (key == "mpp" and tiling[key] in spec.also_mpp))
            and not tiling["allow_scale_mismatch"]
        ):
            raise ConfigError(
                f"config: tiling.{key} is {tiling[key]} but {encoder['name']} was trained at {own} {unit};"
                " set it to auto, or set tiling.allow_scale_mismatch to true"
            )
    return settings


def load_cohort(settings: Settings) -> Cohort:
    """Read the slides, labels and overrides that the settings name, and look that the encoder's weights are there.

    Raises
    ------
    ConfigError
        As `pipeline.cohort.load` and `pipeline.encoders.required_weights` do.
    """
    encoders.required_weights(**_weights(settings))
    paths = settings["paths"]
    return cohorts.load(
        Path(paths["slides"]),
        labels=Path(paths["labels"]),
        overrides=Path(paths["overrides"]),
        target=settings["target"],
        folds=_plan(settings).needed,
        tissue=Path(paths["tissue"]),
        roi=Path(paths["roi"]),
        task=settings["task"],
        event=settings["survival"]["event"],
    )


def rehearse(settings: Settings, cohort: Cohort, fingerprints: Mapping[str, str]) -> None:
    """Try to divide the labelled slides; raises as `pipeline.split.rehearse` does."""
    from pipeline import split

    split.rehearse(cohort.labels, fingerprints, _plan(settings))


def warnings(cohort: Cohort) -> list[str]:
    """Give a sentence for everything that looks odd about a cohort before any slide is opened."""
    from pipeline import confounding

    found = confounding.measure(cohort.labels) if cohort.classes else None
    return [*cohort.warnings, *([found.warning] if found and found.warning else [])]


def fold_count(settings: Settings, cohort: Cohort) -> int:
    """Give the number of models that are trained; 0 without slides.

    Raises
    ------
    ConfigError
        If the sites or the user's splits file do not say it.
    """
    return _plan(settings).count(cohort.labels) if cohort.labels else 0


def given_digest(settings: Settings) -> str:
    """Give a digest of the user's splits file, so that a change divides anew; empty where none is used."""
    plan = _plan(settings)
    return cohorts.digest(plan.file.read_text(encoding="utf-8")) if plan.scheme == "file" else ""


def _plan(settings: Settings) -> "Plan":
    from pipeline.schemes import Plan

    evaluation = settings["evaluation"]
    return Plan(
        **{key: evaluation[key] for key in ("scheme", "folds", "repeats", "validation", "group_by")},
        seed=settings["seed"],
        given=Path(settings["paths"]["splits"]),
        task=settings["task"],
    )


def _weights(settings: Settings) -> dict[str, Any]:
    """Give the encoder and where its weights are, as the functions of `pipeline.encoders` take them."""
    encoder = settings["encoder"]
    given = None if encoder["weights"] == "auto" else encoder["weights"]
    return {"name": encoder["name"], "folder": Path(settings["paths"]["weights"]), "weights": given}


def weights_print(settings: Settings) -> str:
    """Give a fingerprint of the encoder's weights, so that another file under the same name embeds again."""
    path = encoders.weights_path(**_weights(settings))
    return fingerprint(path) if path is not None and path.exists() else ""


def gpus(settings: Settings, stage: str, *, local: bool) -> int:
    """Give the GPUs a job asks for: one, unless its encoder runs on the CPU or the job runs here and there is none.

    Parameters
    ----------
    stage
        `embed` or `train`.
    local
        Whether jobs run on this machine; on a cluster the node that plans need not have a GPU.
    """
    if stage == "embed" and not _encoder(settings).uses_gpu:
        return 0
    return 1 if not local or has_gpu() else 0


def check_encoder(settings: Settings, *, gpus: int) -> None:
    """Look, before any slide is read, that the weights are the right ones and that the device has the precision.

    Parameters
    ----------
    gpus
        GPUs that an `embed` job will be granted.

    Raises
    ------
    ConfigError
        As `pipeline.encoders.check_weights` and `pipeline.encoders.check_precision` do.
    """
    encoders.check_weights(**_weights(settings))
    if _encoder(settings).uses_gpu:
        encoders.check_precision(settings["encoder"]["precision"], "cuda" if gpus else "cpu")


def embed_threads(settings: Settings) -> int:
    """Give the threads of an `embed` job: one for an encoder on the CPU, as slides beside each other scale better."""
    return int(settings["encoder"]["threads"]) if _encoder(settings).uses_gpu else 1


def embed_speed(settings: Settings) -> str:
    """Write what changes how fast an `embed` job runs and not what it writes, as flags of its command."""
    encoder = settings["encoder"]
    batch_size = "" if encoder["batch_size"] == "auto" else f"--batch-size {int(encoder['batch_size'])} "
    return f"{batch_size}{'--compile' if encoder['compile'] else '--no-compile'}"


def _encoder(settings: Settings) -> encoders.EncoderSpec:
    return encoders.spec(settings["encoder"]["name"], Path(settings["paths"]["weights"]))


def models(settings: Settings) -> list[str]:
    """Give the names of the models: the first predicts and draws, the others are compared with it."""
    named: str | list[str] = settings["model"]
    return [named] if isinstance(named, str) else list(named)


def model_options(settings: Settings, name: str) -> Settings:
    """Give the section of a model."""
    section: Settings = settings[name] if name in settings else settings["baselines"][name]
    return section


def private(settings: Settings) -> Path | None:
    """Give the folder of the key and the table of names, where reports show hashes instead of names."""
    return Path(settings["paths"]["results"]) / "private" if settings["privacy"]["hash_ids"] else None


def cache_mb(settings: Settings) -> int:
    """Give the memory for features of a training job, in MiB."""
    return int(1024 * settings["training"]["cache_gb"])


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
        `check`, `tile`, `embed`, `split`, `train`, `predict`, `heatmap` or `report`.
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
                "model": name,
                "options": _json(model_options(settings, name)),
                "anchor": _json(settings["anchor"]),
                # the memory for features changes no result, so it is not a parameter: see cache_mb
                "training": _json({k: v for k, v in settings["training"].items() if k not in ("cache_gb", "recipe")}),
                **_task(settings),
                "risk_set": settings["survival"]["risk_set"] if settings["task"] == "survival" else None,
                "recipe": settings["training"]["recipe"],
                "preparation": _json({"tile": _tile(settings), "embed": _embed(settings)}),
                "stability_slides": settings["stability"]["slides"],
                "seed": settings["seed"],
            }
        case "predict":
            values = dict(settings["decision"])
        case "heatmap":
            values = {**slide, **settings["heatmap"], "private": private(settings)}
        case "report":
            compared = ",".join(models(settings)) if len(models(settings)) > 1 else None
            values = {
                "resamples": evaluation["bootstrap_resamples"],
                "method": evaluation["interval"],
                "seed": settings["seed"],
                "models": compared,
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
        "folds": _plan(settings).needed,
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
