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
    "tile": 4,
    "embed": 1,
    "split": 1,
    "train": 3,
    "compare": 1,
    "predict": 4,
    "heatmap": 3,
    "report": 6,
}


def artefact_version(stage: str) -> str:
    """Give what the workflow watches of a stage: an artefact of another layout is made again, too."""
    return f"{SCHEMA_VERSION}.{STAGE_VERSIONS[stage]}"


def library_versions() -> dict[str, str]:
    """Give the versions of what results depend on."""
    from importlib import metadata

    return {name: metadata.version(name) for name in LIBRARIES}
