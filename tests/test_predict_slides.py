"""Prediction without the workflow: what is refused before any slide is read."""

import os
from pathlib import Path

import pytest

from pipeline import predict, predict_slides
from pipeline.errors import ArtefactError, ConfigError


def test_a_missing_slide_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        predict_slides.slide_ids([tmp_path / "a.svs"])
    paths = [tmp_path / name / "a.tiff" for name in ("one", "two")]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(ConfigError, match="are both called 'a'"):
        predict_slides.slide_ids(paths)


def test_a_slide_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"Pr\xe4parat.svs")
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"Pr\\xe4parat\.svs': the name is not UTF-8; rename it"):
        predict_slides.slide_ids([path])


def test_other_weights_of_the_encoder_are_refused(tmp_path: Path) -> None:
    bags = {"encoder": "texture", "weights_sha256": "0" * 64}
    with pytest.raises(ArtefactError, match="was trained with weights of texture whose sha256 is 0000"):
        predict_slides.check_weights(bags, weights=None, folder=tmp_path, models=tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="has no trained model"):
        predict.folds_in(tmp_path)
