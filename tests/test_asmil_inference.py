import numpy as np
import pytest
import torch
from torch import Tensor, nn

from asmil.inference import evidence
from asmil.registry import build


class LinearMean(nn.Module):
    """The mean of the patches' linear logits."""

    d_in = 4

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Linear(4, 3, bias=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.classify(features)
        return logits.mean(0), logits[:, 0]


def test_of_a_linear_model_the_evidence_adds_up_to_the_logits() -> None:
    torch.manual_seed(0)
    model = LinearMean()
    features = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(features))[0].numpy()
    np.testing.assert_allclose(
        evidence(model, features).sum(0),  # type: ignore[arg-type]
        logits - logits.mean(),
        atol=1e-6,
    )


@pytest.mark.parametrize("name", ["asmil", "gated_abmil", "transmil"])
def test_evidence_is_balanced_over_classes_and_leaves_the_model_as_it_was(name: str) -> None:
    model = build(name, 16, 3).train()
    features = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float16)
    found = evidence(model, features)
    assert found.shape == (20, 3)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-5)
    assert np.abs(found).max() > 0
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_cuts_the_gradient_gives_no_evidence() -> None:
    assert not evidence(build("dtfd", 16, 3), np.ones((20, 16), np.float16)).any()
