"""Which encoders there are, and what each declares of itself. No torch here: every job reads this."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError

Triple = tuple[float, float, float]

RANDOM = "random"
"""The value of `encoder.weights` that asks for untrained, seeded weights."""
TIMM_PREFIX = "timm:"
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
    gated
        Whether the hub asks for an account and its owners' consent.
    source
        Hub id, or where the authors publish the file.
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
    """

    name: str
    mpp: float | None
    patch_px: int
    dim: int | None
    mean: Triple
    std: Triple
    licence: str
    source: str
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
)

CTRANSPATH = EncoderSpec(
    name="ctranspath",
    # The authors' README says to try 1.0 um per pixel first; public pipelines that carry the model (TRIDENT) read 10x.
    mpp=1.0,
    patch_px=224,
    dim=768,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    licence="GPLv3, non-commercial academic use only (the weights; the code here is our own)",
    source="https://github.com/Xiyue-Wang/TransPath (Google Drive file 1DoDx_70_TLj98gTf6YTXnu4tFhsFocDX)",
    weights_file="ctranspath.pth",
    # Of the authors' file, as recorded by the public pipeline STAMP; the authors state none.
    sha256="7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539",
)

BUILT_IN = {spec.name: spec for spec in (TEXTURE, CTRANSPATH)}


def spec(name: str) -> EncoderSpec:
    """Look an encoder up by the value of `encoder.name`.

    `timm:<model>` imports timm, for the model's own patch size and normalisation; the others import nothing.

    Raises
    ------
    ConfigError
        If there is no such encoder.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if name.startswith(TIMM_PREFIX):
        from pipeline.encoders.timm_encoder import timm_spec

        return timm_spec(name)
    known = ", ".join([*BUILT_IN, f"{TIMM_PREFIX}<model>"])
    raise ConfigError(f"encoder.name: {name!r} is not an encoder; set one of {known}")


def weights_path(name: str, folder: Path, weights: str | Path | None) -> Path | None:
    """Say where an encoder's weights are expected, whether or not they are there.

    Parameters
    ----------
    name
        The value of `encoder.name`.
    folder
        Where `weights fetch` puts files.
    weights
        The value of `encoder.weights`: a path, `random`, or None or empty for the encoder's own file in `folder`.

    Returns
    -------
    The file, or None where the encoder needs none or untrained weights are asked for.
    """
    found = spec(name)
    if not found.needs_weights or str(weights) == RANDOM:
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
