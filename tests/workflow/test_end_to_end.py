"""The whole workflow on slides composed of real tissue, judged by what is known of them."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.planted_cells import read_truth, tumour_share
from pipeline import store
from tests.workflow.conftest import Study, made_once

CONFIG = """
encoder: {name: texture}
evaluation: {folds: 4}
training: {learning_rate: 0.0003}  # as docs/troubleshooting.md advises for few slides
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def composed(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Give a study of 16 composed slides, two of them unlabelled, on which the workflow ran as a user runs it."""
    tool = shared_data.parent / "tools" / "compose_cohort.py"

    def make(folder: Path) -> None:
        places = ("--patches", str(shared_data / "tissue.zip"), "--out", str(folder / "data"))
        sizes = ("--slides", "16", "--grid", "9", "--unlabelled", "2", "--seed", "3")
        subprocess.run([sys.executable, str(tool), *places, *sizes], check=True, stdout=subprocess.DEVNULL)
        (folder / "config.yaml").write_text(CONFIG)
        ran = Study(folder).run("--resources", "gpu=1")
        assert ran.code == 0, ran.output

    return Study(made_once(tmp_path_factory, "composed", make))


def test_slides_with_planted_tumour_are_told_from_those_without(composed: Study) -> None:
    metrics = json.loads((composed.folder / "reports" / "metrics.json").read_text())
    assert metrics["pooled"]["auroc"]["value"] > 0.9
    with (composed.folder / "reports" / "predictions.csv").open() as handle:
        unlabelled = [row for row in csv.DictReader(handle) if not row["label"]]
    assert [row["source"] for row in unlabelled] == ["ensemble", "ensemble"]


def test_attention_ranks_planted_tumour_cells_first(composed: Study) -> None:
    aurocs = []
    for slide, cells in read_truth(composed.folder / "data" / "truth.csv").items():
        artefact = store.read(composed.folder / "results" / "attention" / f"{slide}.zarr.zip")
        share = tumour_share(artefact.arrays["coords"], artefact.attributes["patch_level0_px"], cells)
        clear = (share >= 0.5) | (share <= 0.01)
        aurocs.append(roc_auc_score(share[clear] >= 0.5, artefact.arrays["score"][clear]))
    assert np.mean(aurocs) > 0.9
