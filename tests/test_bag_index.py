"""The index of the bags changes with what is in a bag, and with nothing else."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import bag_index, store
from pipeline.errors import SlideError


def write(folder: Path, slide: str, *, features: float = 1.0, error: SlideError | None = None, **more: Any) -> None:
    attributes = store.stage_attributes("embed", slide_id=slide, fingerprint="f", error=error, **more)
    arrays = {} if error else {"features": np.full((5, 3), features, np.float16)}
    store.write(folder / f"{slide}.zarr.zip", arrays, attributes)


def index(folder: Path) -> str:
    bags = {path.name.removesuffix(".zarr.zip"): path for path in folder.glob("*.zarr.zip")}
    attributes = {slide: store.read_attributes(path) for slide, path in bags.items()}
    bag_index.write(folder / "bags.json", attributes, bags=folder)
    return (folder / "bags.json").read_text()


@pytest.fixture
def bags(tmp_path: Path) -> Path:
    write(tmp_path, "a", patches_per_s=100.0)
    write(tmp_path, "b", error=SlideError("no tissue", remedy="look at it"))
    return tmp_path


def test_the_same_bag_embedded_at_another_speed_changes_nothing(bags: Path) -> None:
    before = index(bags)
    write(bags, "a", patches_per_s=7.25)
    assert index(bags) == before


@pytest.mark.parametrize("changed", [{"features": 2.0}, {"encoder": "other"}, {"error": SlideError("", remedy="")}])
def test_another_bag_changes_the_index(bags: Path, changed: dict[str, Any]) -> None:
    before = json.loads(index(bags))["bags"]
    write(bags, "a", **{"patches_per_s": 100.0, **changed})
    after = json.loads(index(bags))["bags"]
    assert {slide for slide in before if before[slide] != after[slide]} == {"a"}


def test_a_quarantined_bag_that_can_be_used_now_changes_the_index(bags: Path) -> None:
    before = index(bags)
    write(bags, "b")
    assert index(bags) != before


def test_the_size_of_all_bags_is_told_and_an_index_that_does_not_say_it_counts_nothing(bags: Path) -> None:
    index(bags)
    one = bag_index.size_bytes(bags / "bags.json")
    assert one > 0
    write(bags, "b")
    index(bags)
    assert bag_index.size_bytes(bags / "bags.json") == 2 * one
    for text in ("[]", "{}", '{"bytes": null}', "cut"):
        (bags / "bags.json").write_text(text)
        assert bag_index.size_bytes(bags / "bags.json") == 0
    with pytest.raises(FileNotFoundError):
        bag_index.size_bytes(bags / "missing.json")
