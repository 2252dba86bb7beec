import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from pipeline.errors import SlideError
from pipeline.geojson import from_geojson, read_geojson, to_geojson
from pipeline.outline import from_qupath, to_qupath

SQUARE = [[4, 4], [12, 4], [12, 12], [4, 12], [4, 4]]


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_mask_survives_the_round_trip_through_geojson(mask: NDArray[np.bool_]) -> None:
    collection = json.loads(json.dumps(to_geojson(mask, downsample=16.06)))
    np.testing.assert_array_equal(from_geojson(collection, shape=mask.shape, downsample=16.06), mask)


def test_polygons_are_closed_classified_and_have_holes() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[2:12, 3:13] = True
    mask[5:7, 6:9] = False
    mask[15:18, 20:25] = True
    features = to_geojson(mask, downsample=4)["features"]
    assert [len(feature["geometry"]["coordinates"]) for feature in features] == [2, 1]
    assert features[0]["properties"]["classification"]["name"] == "Tissue"
    outer, hole = features[0]["geometry"]["coordinates"]
    assert outer[0] == outer[-1]
    assert sorted(map(tuple, outer[:-1])) == [(12, 8), (12, 48), (52, 8), (52, 48)]
    assert sorted(map(tuple, hole[:-1])) == [(24, 20), (24, 28), (36, 20), (36, 28)]


def test_polygons_edited_elsewhere_are_filled_by_pixel_centres() -> None:
    triangle = [[0, 0], [8, 0], [0, 8], [0, 0]]
    geometry = {
        "type": "MultiPolygon",
        "coordinates": [[triangle], [[[20, 20], [24, 20], [24, 24], [20, 24], [20, 20]]]],
    }
    collection: dict[str, Any] = {
        "type": "FeatureCollection",
        "features": [{"geometry": geometry}, {"geometry": {"type": "Polygon", "coordinates": [triangle]}}],
    }
    mask = from_geojson(collection, shape=(6, 6), downsample=4)
    expected = np.zeros((6, 6), np.bool_)
    expected[0, 0] = expected[5, 5] = True
    assert mask.sum() in (2, 4)  # the triangle's slanted edge runs through the centres of two pixels
    assert (mask & expected).sum() == 2


def test_a_line_has_no_inside() -> None:
    collection: dict[str, Any] = {
        "type": "FeatureCollection",
        "features": [{"geometry": {"type": "LineString", "coordinates": [[0, 0], [1, 1]]}}],
    }
    with pytest.raises(ValueError, match="feature 1 is a LineString"):
        from_geojson(collection, shape=(4, 4), downsample=1)


def feature(ring: Any, *, classification: Any = None) -> dict[str, Any]:
    properties = {} if classification is None else {"classification": classification}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


@pytest.mark.parametrize(
    "collection",
    [
        {"type": "FeatureCollection", "features": [feature(SQUARE)]},
        [feature(SQUARE)],
        feature(SQUARE),
        {"type": "Polygon", "coordinates": [SQUARE]},
        feature(SQUARE[:-1]),
        feature([[x, y, 0] for x, y in SQUARE]),
    ],
    ids=["collection", "list, as QuPath writes", "feature", "geometry", "open ring", "three coordinates"],
)
def test_every_form_of_geojson_is_read(collection: Any) -> None:
    mask = from_geojson(collection, shape=(5, 5), downsample=4)
    expected = np.zeros((5, 5), np.bool_)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    "ignored",
    [
        {"name": "Ignore*", "color": [180, 180, 180]},
        {"name": "Ignore*", "colorRGB": -4934476},
        {"names": ["Stroma", "Ignore*"], "color": [180, 180, 180]},
        "Ignore*",
    ],
    ids=["0.4 and later", "before 0.4", "derived class", "text"],
)
def test_what_qupath_ignores_is_cut_out(ignored: Any) -> None:
    inner = [[4, 4], [8, 4], [8, 8], [4, 8], [4, 4]]
    features = [feature(inner, classification=ignored), feature(SQUARE, classification={"name": "Tissue"})]
    mask = from_geojson(features, shape=(5, 5), downsample=4)
    assert mask.sum() == 3
    assert not mask[1, 1]


def test_the_features_have_what_qupath_reads_of_an_annotation() -> None:
    """The names and types that QuPath's readers (PathObjectTypeAdapters, GsonTools, 0.4 and later) take."""
    mask = np.zeros((5, 5), np.bool_)
    mask[1:3, 1:3] = True
    collection = to_geojson(mask, downsample=4)
    assert set(collection) == {"type", "features"}
    (found,) = collection["features"]
    assert set(found) == {"type", "geometry", "properties"}
    assert (found["type"], found["geometry"]["type"]) == ("Feature", "Polygon")
    properties = found["properties"]
    assert set(properties) == {"objectType", "name", "classification"}
    assert properties["objectType"] == "annotation"
    assert set(properties["classification"]) == {"name", "color"}
    color = properties["classification"]["color"]
    assert len(color) == 3
    assert all(type(part) is int and 0 <= part <= 255 for part in color)


def test_the_frame_is_qupaths_on_a_slide_with_bounds() -> None:
    mask = np.zeros((10, 10), np.bool_)
    mask[4:6, 5:8] = True
    collection = to_geojson(mask, downsample=10, bounds=(30, 20, 60, 60))
    corners = np.array(collection["features"][0]["geometry"]["coordinates"][0])
    assert corners.min(axis=0).tolist() == [50 - 30, 40 - 20]
    np.testing.assert_array_equal(
        from_geojson(collection, shape=(10, 10), downsample=10, bounds=(30, 20, 60, 60)), mask
    )
    np.testing.assert_array_equal(from_qupath(to_qupath(corners, bounds=(3, 2, 9, 9)), bounds=(3, 2, 9, 9)), corners)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("{}", "no GeoJSON features"),
        ('"a"', "no GeoJSON features"),
        ("[1]", "feature 1 is no GeoJSON feature"),
        ("[{}]", "feature 1 has no geometry"),
        ('[{"geometry": {"type": "Point", "coordinates": [1, 2]}}]', "feature 1 is a Point"),
        ('[{"geometry": {"type": "Polygon", "coordinates": []}}]', "has no coordinates"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], ["a", 3], [1, 1]]]}}]', "not a list of three"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [2, 3]]]}}]', "not a list of three"),
        ('[{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [2, NaN], [1, 1]]]}}]', "not a list of three"),
        (json.dumps(feature([[900, 900], [990, 900], [990, 990], [900, 900]])), "covers no part of the slide"),
    ],
)
def test_a_malformed_file_is_named_with_its_problem(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "case.geojson"
    path.write_text(text)
    with pytest.raises(SlideError, match=words) as caught:
        read_geojson(path, shape=(5, 5), downsample=4, bounds=(0, 0, 20, 20))
    assert "case.geojson" in caught.value.reason
    assert caught.value.remedy


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "case.geojson"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SlideError, match="not UTF-8"):
        read_geojson(path, shape=(5, 5), downsample=4, bounds=(0, 0, 20, 20))
    with pytest.raises(SlideError, match="cannot be read"):
        read_geojson(tmp_path / "none.geojson", shape=(5, 5), downsample=4, bounds=(0, 0, 20, 20))
