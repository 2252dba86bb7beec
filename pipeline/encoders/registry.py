"""Which encoders there are, and what each declares of itself. No torch here: every job reads this."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import ConfigError

Triple = tuple[float, float, float]

RANDOM = "random"
"""The value of `encoder.weights` that asks for untrained, seeded weights."""
IMPORTED = "imported"
"""The value of `encoder.weights` for features that another toolbox computed: nothing is encoded here."""
TIMM_PREFIX = "timm:"
HUB_PREFIX = "hf-hub:"
PLUGIN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""`module:attribute`, an encoder of the user's own."""
WEIGHTS_FOLDER = Path("weights")
Builder = Literal["texture", "ctranspath", "timm", "vit", "conch", "snapshot", "plugin"]
Pooling = Literal["model", "cls", "cls+mean", "attention"]
TEXTURE_SMALLEST_PX = 32
"""Patch edge below which the texture encoder's coarsest scale has nothing left to describe."""
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder declares of itself.

    Parameters
    ----------
    name
        The value of `encoder.name`.
    mpp
        Resolution its patches are read at, um per pixel; None where it has none and `tiling.mpp` must say it.
    patch_px
        Edge of its patches.
    dim
        Number of features; None where only the built model tells.
    mean, std
        Normalisation of RGB in [0, 1]; unused where `uses_gpu` is False.
    licence
        Licence of the weights, with what it forbids.
    source
        Hub id, or where the authors publish the file.
    also_mpp
        Other resolutions that it was trained at.
    pooling
        How tokens become one vector: the model's own way, the class token, that with the mean of the patch tokens
        beside it, or a learned attention pool.
    gated
        Whether the hub asks for an account and its owners' consent.
    hub_id, hub_file, revision
        Where `weights fetch` finds the file; empty where it is on no hub. An empty revision is the newest.
    weights_file
        Name of the file in the folder of weights; empty where `needs_weights` is False.
    sha256
        Digest of the published file, where one is known.
    uses_gpu
        Whether it runs on the device; if not, it runs on the CPU wherever it is.
    standardise
        Whether its features want a mean of 0 and a spread of 1 before a model sees them.
    needs_weights
        Whether it needs a file.
    any_scale
        Whether its features mean something at another resolution and patch size than its own.
    builder
        Which function builds it.
    architecture, options
        timm's name of the network, and the arguments it is built with; the value `swiglu` of `mlp` stands for a gated
        MLP with SiLU.
    layout
        Which renaming of a checkpoint's tensors it needs; see `pipeline.encoders.layouts`.
    """

    name: str
    mpp: float | None
    patch_px: int
    dim: int | None
    mean: Triple
    std: Triple
    licence: str
    source: str
    also_mpp: tuple[float, ...] = ()
    pooling: Pooling = "model"
    gated: bool = False
    hub_id: str = ""
    hub_file: str = ""
    revision: str = ""
    weights_file: str = ""
    sha256: str | None = None
    uses_gpu: bool = True
    standardise: bool = False
    needs_weights: bool = True
    any_scale: bool = False
    builder: Builder = "timm"
    architecture: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    layout: str = "timm"


TEXTURE = EncoderSpec(
    name="texture",
    mpp=0.5,
    patch_px=224,
    dim=342,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    licence="MIT (part of this package)",
    source="pipeline.encoders.texture",
    uses_gpu=False,
    standardise=True,
    needs_weights=False,
    any_scale=True,
    builder="texture",
)


def built_in() -> dict[str, EncoderSpec]:
    """Give every encoder that is known by name: the embedded one, then the published ones."""
    from pipeline.encoders.catalogue import PUBLISHED  # not above: the table is written in the words of this module

    return {TEXTURE.name: TEXTURE, **PUBLISHED}


def spec(name: str, folder: Path = WEIGHTS_FOLDER) -> EncoderSpec:
    """Look an encoder up by the value of `encoder.name`.

    `timm:<model>` imports timm, for the model's own patch size and normalisation; `hf-hub:<id>` reads the snapshot's
    configuration; `module:attribute` imports the user's module. The others import nothing.

    Parameters
    ----------
    name
        The value of `encoder.name`.
    folder
        Folder of the weights, where snapshots are.

    Raises
    ------
    ConfigError
        If there is no such encoder.
    """
    known = built_in()
    if name in known:
        return known[name]
    if name.startswith(TIMM_PREFIX):
        from pipeline.encoders.timm_encoder import timm_spec

        return timm_spec(name)
    if name.startswith(HUB_PREFIX):
        from pipeline.encoders.snapshot import snapshot_spec

        return snapshot_spec(name, folder)
    if PLUGIN.fullmatch(name):
        from pipeline.encoders.plugin import plugin_spec

        return plugin_spec(name)
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    raise ConfigError(
        f"encoder.name: {name!r} is not an encoder; {hint}set one that `python -m pipeline encoders` lists, "
        f"{TIMM_PREFIX}<model>, {HUB_PREFIX}<id>, or module:attribute"
    )


def weights_path(name: str, folder: Path, weights: str | Path | None) -> Path | None:
    """Say where an encoder's weights are expected, whether or not they are there.

    Parameters
    ----------
    name
        The value of `encoder.name`.
    folder
        Where `weights fetch` puts files.
    weights
        The value of `encoder.weights`: a path, `random`, `imported`, or None or empty for the encoder's own file in
        `folder`.

    Returns
    -------
    The file, or None where the encoder needs none or untrained weights are asked for.
    """
    found = spec(name, folder)
    if not found.needs_weights or str(weights) in {RANDOM, IMPORTED}:
        return None
    return Path(weights) if weights else folder / found.weights_file


def required_weights(name: str, folder: Path, weights: str | Path | None) -> Path | None:
    """Give `weights_path`, and raise a ConfigError that says what to do where there is no such file."""
    path = weights_path(name, folder, weights)
    if path is None or path.is_file():
        return path
    fetch = "" if weights else f"run `python -m pipeline weights fetch {name}`, "
    raise ConfigError(
        f"{name}: no weights at {path}; {fetch}name the file in `encoder.weights`, "
        "or set `encoder.name: texture` for the embedded encoder, which needs none"
    )
