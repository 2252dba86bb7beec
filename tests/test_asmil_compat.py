"""The preset that trains as the authors' released code does; loading its weights is tested with the model."""

from pathlib import Path

import torch
import yaml
from torch import Tensor

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag
from asmil.compat import released_code
from asmil.model import ASMIL
from asmil.training import FitConfig, fit

WIDTH = 16


def bags(count: int) -> list[Bag]:
    generator = torch.Generator().manual_seed(0)
    return [Bag(torch.randn(20, WIDTH, generator=generator), number % 2, str(number)) for number in range(count)]


def test_released_preset_holds_attention_to_a_random_anchor_that_never_moves() -> None:
    settings = released_code()
    torch.manual_seed(0)
    model = ASMIL(WIDTH, 2, d_inner=16, heads=2, **settings.model)
    anchor = AnchorRegularizer(model, settings.anchor, seed=1)
    before = anchor.state_dict()
    assert not torch.equal(before["project.weight"], model.project.weight)
    fit(model, bags(6), bags(2), anchor=anchor, config=FitConfig(epochs=2, learning_rate=1e-3), seed=0)
    after = anchor.state_dict()
    assert after["anchor.steps"] == 12
    assert all(torch.equal(before[name], after[name]) for name in before if name != "anchor.steps")


def test_released_preset_averages_the_loss_over_patches_with_weight_one() -> None:
    settings = released_code()
    model = ASMIL(WIDTH, 2, d_inner=16, heads=2, **settings.model).eval()
    anchor = AnchorRegularizer(model, settings.anchor)
    features = torch.as_tensor(bags(1)[0].features)
    _, logits = model(features)
    log_target, log_attention = anchor.log_target(logits, features), logits.log_softmax(-1)
    summed: Tensor = (log_target.exp() * (log_target - log_attention)).sum(-1).mean()
    torch.testing.assert_close(anchor.loss(logits, features), summed / len(features))
    assert anchor.weight == 1


def test_released_preset_drops_a_fixed_number_of_tokens_half_unless_told() -> None:
    assert ASMIL(WIDTH, 2, **released_code().model).dropped == 4
    assert ASMIL(WIDTH, 2, **released_code(tokens=6, dropped=1).model).dropped == 1


def test_the_workflows_preset_is_that_of_python() -> None:
    path = Path(__file__).parents[1] / "workflow" / "presets" / "released_code.yaml"
    found, settings = yaml.safe_load(path.read_text(encoding="utf-8")), released_code()
    assert found["asmil"] == settings.model
    assert AnchorConfig(**found["anchor"]) == settings.anchor
