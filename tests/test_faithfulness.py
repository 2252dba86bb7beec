"""The deletion test where it is known which patches carry the signal: it tells maps that mark them from others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from asmil.bags import Bag
from asmil.inference import predict
from asmil.protocol import AttentionMIL
from asmil.training import FitConfig, fit
from pipeline import certainty, store
from pipeline.evaluation import Prediction, SlideResult
from pipeline.faithfulness import FEWEST_PATCHES, deletion
from pipeline.figures import Interval
from tests.test_baselines import make
from tests.test_baselines_training import planted

Score = Callable[[AttentionMIL, Bag, int], NDArray[np.float32]]


def attention_of(model: AttentionMIL, bag: Bag, seed: int) -> NDArray[np.float32]:
    return np.asarray(predict(model, bag.features).score, np.float32)


def at_random(model: AttentionMIL, bag: Bag, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(100 + seed).random(len(bag.features)).astype(np.float32)


def the_truth(model: AttentionMIL, bag: Bag, seed: int) -> NDArray[np.float32]:
    """Give how far a patch is shifted along the direction of the signal."""
    return np.asarray(bag.features[:, 0], np.float32)


def the_opposite(model: AttentionMIL, bag: Bag, seed: int) -> NDArray[np.float32]:
    return -the_truth(model, bag, seed)


@pytest.fixture(scope="module", params=["gated_abmil", "clam_sb"])
def model(request: pytest.FixtureRequest) -> AttentionMIL:
    trained: AttentionMIL = make(request.param, d_in=16, classes=2, d_inner=32)
    fit(trained, planted(24, seed=1), planted(8, seed=2), config=FitConfig(epochs=6, learning_rate=4e-3), seed=0)
    return trained


def gap(model: AttentionMIL, score: Score) -> dict[str, float]:
    """Give the gap between the curves as the report gives it, over the positive bags of 40 that were not trained on."""
    slides = []
    for index, bag in enumerate(planted(40, seed=3)[1::2]):
        features = np.asarray(bag.features, np.float32)
        found = deletion(model, features, score(model, bag, index), device="cpu", seed=index)
        known: dict[str, Any] = {"classes": ("normal", "tumour"), "folds": (0,), "source": "out_of_fold"}
        judged = Prediction("tumour", probabilities=(0.0, 1.0), by_fold=np.ones((1, 2)), fold_spread=0.0, **known)
        judged = Prediction(**{**vars(judged), "deletion": found})
        slides.append(SlideResult(bag.name, bag.name, "tumour", store.OK, prediction=judged))
    curves = certainty.deletion(slides, interval=Interval(500, 0))
    assert curves is not None
    assert curves["n_slides"] == 20
    value: dict[str, float] = curves["gap"]
    return value


@pytest.mark.parametrize("score", [attention_of, the_truth])
def test_dropping_the_most_attended_hurts_more_than_dropping_at_random(model: AttentionMIL, score: Score) -> None:
    found = gap(model, score)
    assert found["value"] > 0.15
    assert found["low"] > 0.1


def test_attention_drawn_at_random_passes_for_no_evidence(model: AttentionMIL) -> None:
    found = gap(model, at_random)
    assert found["low"] < 0 < found["high"]
    assert abs(found["value"]) < 0.05


def test_attention_on_everything_but_the_signal_is_worse_than_random(model: AttentionMIL) -> None:
    assert gap(model, the_opposite)["high"] < 0


def test_a_slide_of_few_patches_is_not_tested(model: AttentionMIL) -> None:
    features = np.zeros((FEWEST_PATCHES - 1, 16), np.float32)
    assert deletion(model, features, np.ones(len(features), np.float32), device="cpu") is None
