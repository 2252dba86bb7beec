"""Masks to GeoJSON that QuPath opens, and what was drawn in QuPath back to masks.

Coordinates in a file are QuPath's: level-0 px from the corner of the slide's bounds (see `outline.to_qupath`).
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import json_text
from pipeline.errors import SlideError
from pipeline.outline import Bounds, Ring, fill_rings, from_qupath, to_qupath, trace_polygons

DRAW_AGAIN = "export it from QuPath again (File, Export objects as GeoJSON), or remove the file"
WHOLE: Bounds = (0, 0, 0, 0)
"""Bounds of a slide that states none: its corner is the frame's."""


def to_geojson(
    mask: NDArray[np.bool_], *, downsample: float, bounds: Bounds = WHOLE, name: str = "Tissue"
) -> dict[str, Any]:
    """Describe a mask as polygons with holes that QuPath opens as annotations.

    Parameters
    ----------
    mask
        Shape (H, W), its corner at the slide's.
    downsample
        Level-0 px per mask pixel.
    bounds
        x, y, width, height of the slide's bounds, level-0 px.
    name
        QuPath's class of the annotations.

    Returns
    -------
    A GeoJSON FeatureCollection, one feature a connected region, coordinates in QuPath's frame.
    """
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [
                    _written(ring, downsample=downsample, bounds=bounds) for ring in (polygon.outer, *polygon.holes)
                ],
            },
            "properties": {
                "objectType": "annotation",
                "name": f"{name} {number}",
                "classification": {"name": name, "color": [0, 150, 110]},
            },
        }
        for number, polygon in enumerate(trace_polygons(mask), start=1)
    ]
    return {"type": "FeatureCollection", "features": features}


def from_geojson(
    collection: Any, *, shape: tuple[int, int], downsample: float, bounds: Bounds = WHOLE
) -> NDArray[np.bool_]:
    """Rasterise polygons: the inverse of `to_geojson`, also for what was drawn or edited in QuPath.

    Parameters
    ----------
    collection
        What a GeoJSON file holds: a FeatureCollection, a list of features (as QuPath also writes them), one feature or
        one geometry. Polygons whose class in QuPath ends in "*" (its "Ignore*") are cut out of the others.
    shape
        (H, W) of the mask.
    downsample
        Level-0 px per mask pixel.
    bounds
        x, y, width, height of the slide's bounds, level-0 px.

    Raises
    ------
    ValueError
        If something is not a polygon; a clause that says what was found.
    """
    mask = np.zeros(shape, np.bool_)
    ignored = np.zeros(shape, np.bool_)
    for number, feature in enumerate(_features(collection), start=1):
        target = ignored if _is_ignored(feature) else mask
        for polygon in _polygons(feature.get("geometry"), number):
            rings = [from_qupath(_ring(ring, number), bounds=bounds) / downsample for ring in polygon]
            target |= fill_rings(rings, shape=shape)
    drawn: NDArray[np.bool_] = mask & ~ignored
    return drawn


def read_geojson(path: Path, *, shape: tuple[int, int], downsample: float, bounds: Bounds) -> NDArray[np.bool_]:
    """Read what a user drew on one slide; parameters as for `from_geojson`.

    Raises
    ------
    SlideError
        If the file is missing, no GeoJSON, holds something without an inside, or covers no part of the slide.
    """
    try:
        collection = json_text.parse(path.read_bytes())
        mask = from_geojson(collection, shape=shape, downsample=downsample, bounds=bounds)
    except OSError as error:
        raise SlideError(f"{path} cannot be read ({error.strerror})", remedy=DRAW_AGAIN) from error
    except json_text.JsonError as error:
        raise SlideError(f"{path} {error}", remedy=DRAW_AGAIN) from error
    except ValueError as error:
        raise SlideError(f"{path}: {error}", remedy=DRAW_AGAIN) from error
    if not mask.any():
        raise SlideError(
            f"{path} covers no part of the slide",
            remedy="look whether it was drawn on another slide, or at another resolution",
        )
    return mask


def _features(collection: Any) -> Iterator[Mapping[str, Any]]:
    """Give the features of whatever form of GeoJSON there is."""
    match collection:
        case {"type": "FeatureCollection", "features": list(features)}:
            pass
        case list(features):
            pass
        case {"type": "Feature"}:
            features = [collection]
        case {"type": str(), "coordinates": _}:
            features = [{"geometry": collection}]
        case _:
            raise ValueError("it holds no GeoJSON features")
    for number, feature in enumerate(features, start=1):
        if not isinstance(feature, Mapping):
            raise ValueError(f"feature {number} is no GeoJSON feature")
        yield feature


def _is_ignored(feature: Mapping[str, Any]) -> bool:
    # QuPath writes an object with a name, or with the names of a class and what it is derived from; a text is read too
    match feature.get("properties"):
        case {"classification": str(name) | {"name": str(name)} | {"names": [*_, str(name)]}}:
            return name.endswith("*")
    return False


def _polygons(geometry: Any, number: int) -> Iterable[Any]:
    match geometry:
        case {"type": "Polygon", "coordinates": list(rings)} if rings:
            return (rings,)
        case {"type": "MultiPolygon", "coordinates": list(polygons)} if polygons:
            return polygons
        case {"type": "Polygon" | "MultiPolygon"}:
            raise ValueError(f"the polygon of feature {number} has no coordinates")
        case {"type": str(kind)}:
            raise ValueError(f"feature {number} is a {kind}; only Polygon and MultiPolygon have an inside")
    raise ValueError(f"feature {number} has no geometry")


def _ring(corners: Any, number: int) -> Ring:
    """Read a ring and close it."""
    try:
        ring = np.array([corner[:2] for corner in corners], np.float64)
    except (TypeError, ValueError, KeyError):
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise ValueError(f"a ring of feature {number} is not a list of three or more x, y")
    return ring if (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]])


def _written(ring: Ring, *, downsample: float, bounds: Bounds) -> list[list[float]]:
    # a hundredth of a pixel: exact for the round trip, half the size of the file
    corners: list[list[float]] = np.round(to_qupath(ring * downsample, bounds=bounds), 2).tolist()
    return corners
