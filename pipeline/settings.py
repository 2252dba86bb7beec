"""The configuration: checked against its schema, and resolved against the encoder.

Only the Snakefile uses this module with the whole configuration; a stage gets its own settings as flags
(`pipeline.stage_flags`).
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from asmil.options import WIDTH_STEP, default_d_inner
from pipeline import cohort as cohorts
from pipeline import config_schema, encoders, tasks
from pipeline.cohort import Cohort
from pipeline.device import has_gpu
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint

if TYPE_CHECKING:
    from pipeline.schemes import Plan

Settings = dict[str, Any]


def read(files: Iterable[Path]) -> dict[str, Any]:
    """Read configuration files, each laid over those before it, as Snakemake does.

    Raises
    ------
    ConfigError
        If one is no YAML, or no sections with settings.
    """
    config: dict[str, Any] = {}
    for path in files:
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            why = " ".join(str(error).split())[:200]
            raise ConfigError(f"{path}: cannot be read as YAML ({why}); mend it there") from error
        if not isinstance(found, dict | None):
            raise ConfigError(f"{path}: holds {type(found).__name__}, not sections with settings; see config.yaml")
        config = laid_over(config, found or {})
    return config


def laid_over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Give a configuration with another one laid over it, section by section, as Snakemake does."""
    both = {
        name: laid_over(base[name], value) if isinstance(value, dict) and isinstance(base.get(name), dict) else value
        for name, value in changes.items()
    }
    return {**base, **both}


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
    settings: Settings = config_schema.typed(config, rules)
    config_schema.validate(settings, rules)
    _check_model(settings)
    of_classes = {"training.class_weights": ("none", "weighs"), "asmil.token_loss": (0, "learns")}
    for name, (off, does) in of_classes.items():
        section, key = name.split(".")
        if settings["task"] != tasks.CLASSIFICATION and settings[section][key] != off:
            raise ConfigError(
                f"config: {name} {does} classes, of which task: {settings['task']} has none; set it to {off}"
            )
    _check_anchor(settings)
    tasks.check_models([architecture(model) for model in models(settings)], task=settings["task"])
    _check_colormap(settings["heatmap"]["colormap"])
    return _resolve_scale(settings)


def _check_model(settings: Settings) -> None:
    """Refuse options of a model that do not fit each other, which a schema of single keys cannot see."""
    seen: dict[tuple[str, str], str] = {}
    for model in models(settings):
        same = seen.setdefault((architecture(model), anchor_options(settings, model)["mode"]), model)
        if same != model:
            raise ConfigError(f"config: model has {same} and {model}, which are trained alike; name one of them")
        having = model_options(settings, model)
        if "heads" not in having:
            continue
        name = architecture(model) if architecture(model) in settings else f"baselines.{architecture(model)}"
        width, heads = having["d_inner"], having["heads"]
        shown = str(width)
        if width == "auto":
            dim = _encoder(settings).dim
            width = WIDTH_STEP if dim is None else default_d_inner(dim)
            # where only the built encoder tells its width, any multiple of 8 may come
            shown = f"auto, {'some multiple of 8' if dim is None else width}"
        if width % heads:
            raise ConfigError(f"config: {name}.heads is {heads}, which does not divide d_inner ({shown}); change one")
    options = settings["asmil"]
    dropped = str(options["token_drop"]).removeprefix("fixed:")
    if dropped.isdigit() and int(dropped) >= options["tokens"]:
        raise ConfigError(
            f"config: asmil.token_drop is {options['token_drop']} of {options['tokens']} tokens; one must be kept"
        )


def _check_anchor(settings: Settings) -> None:
    """Refuse what would do nothing: a start after the training's end, and a mode that no model of the run takes."""
    start, training = settings["anchor"]["start_epoch"], settings["training"]
    used = [model for model in models(settings) if anchor_options(settings, model)["mode"] != "none"]
    for model in used if start > 1 else ():
        epochs = training["epochs"]
        if training["recipe"] == "source":
            from asmil.registry import MODELS  # which imports torch, and so only where it is asked

            epochs = MODELS[architecture(model)].recipe.epochs
        if start > epochs:
            raise ConfigError(
                f"config: anchor.start_epoch is {start}, after the last of {epochs} epochs of {model}: the anchor would"
                " do nothing; start it sooner, or train without it, as asmil+none"
            )
    mode, first = settings["anchor"]["mode"], models(settings)[0]
    if not used and mode not in ("none", "ema"):
        raise ConfigError(
            f"config: anchor.mode is {mode}, but no model of the run is trained with an anchor; write"
            f" {architecture(first)}+{mode}, or leave the mode at ema"
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
        paths["slides"],
        labels=Path(paths["labels"]),
        overrides=Path(paths["overrides"]),
        target=settings["target"],
        folds=plan(settings).needed,
        tissue=Path(paths["tissue"]),
        roi=Path(paths["roi"]),
        task=settings["task"],
        event=settings["survival"]["event"],
    )


def rehearse(settings: Settings, cohort: Cohort, fingerprints: Mapping[str, str]) -> None:
    """Try to divide the labelled slides; raises as `pipeline.split.rehearse` does."""
    from pipeline import split

    split.rehearse(cohort.labels, fingerprints, plan(settings))


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
    return plan(settings).count(cohort.labels) if cohort.labels else 0


def given_digest(settings: Settings) -> str:
    """Give a digest of the user's splits file, so that a change divides anew; empty where none is used."""
    used = plan(settings)
    return cohorts.digest(used.file.read_text(encoding="utf-8")) if used.scheme == "file" else ""


def plan(settings: Settings) -> "Plan":
    """Give how the labelled slides are divided."""
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
    """Give the models as the configuration names them: the first predicts and draws, the others are compared with it.

    A name may end in what the anchor does in that one's training, as in `abmil+ema`.
    """
    named: str | list[str] = settings["model"]
    return [named] if isinstance(named, str) else list(named)


def architecture(model: str) -> str:
    """Give the name that the code knows a model by, from how the configuration names it: abmil of `abmil+ema`."""
    return model.partition("+")[0]


def model_options(settings: Settings, model: str) -> Settings:
    """Give the section of a model."""
    name = architecture(model)
    section: Settings = settings[name] if name in settings else settings["baselines"][name]
    return section


def anchor_options(settings: Settings, model: str) -> Settings:
    """Give the options of the anchor in a model's training: models of other authors have none unless asked for."""
    name, _, mode = model.partition("+")
    options: Settings = settings["anchor"]
    mode = mode or (options["mode"] if name == "asmil" else "none")
    # without an anchor its other options change nothing, and so must train nothing again
    return {"mode": mode} if mode == "none" else {**options, "mode": mode}


def private(settings: Settings) -> Path | None:
    """Give the folder of the key and the table of names, where reports show hashes instead of names."""
    return Path(settings["paths"]["results"]) / "private" if settings["privacy"]["hash_ids"] else None


def cache_mb(settings: Settings) -> int:
    """Give the memory for features of a training job, in MiB."""
    return int(1024 * settings["training"]["cache_gb"])
