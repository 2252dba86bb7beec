"""The product's version, the artefacts' schema version, and one version a stage.

A stage's version is part of the parameters that the workflow watches: raise it when a change alters what the stage
writes for the same input, and every artefact of that stage, and what follows from it, is made again.
"""

__version__ = "0.1.0"

LIBRARIES = ("torch", "numpy", "scikit-learn", "openslide-python", "zarr")
"""Libraries whose versions a model folder records."""

SCHEMA_VERSION = 1
"""Layout of the artefacts (names of arrays and attributes)."""

STAGE_VERSIONS: dict[str, int] = {
    "check": 1,
    "tile": 5,
    "embed": 2,
    "split": 1,
    "train": 8,
    "compare": 1,
    "agreement": 1,
    "predict": 6,
    "heatmap": 5,
    "report": 11,
}


def artefact_version(stage: str) -> str:
    """Give what the workflow watches of a stage: an artefact of another layout is made again, too."""
    return f"{SCHEMA_VERSION}.{STAGE_VERSIONS[stage]}"


def made_by(stage: str, **more: object) -> dict[str, object]:
    """Say what made a file: this program, its stage and their versions, and `more` of what it was made from."""
    return {"asmil_wsi": __version__, "stage": stage, "stage_version": STAGE_VERSIONS[stage], **more}


def library_versions() -> dict[str, str]:
    """Give the versions of what results depend on."""
    from importlib import metadata

    return {name: metadata.version(name) for name in LIBRARIES}
