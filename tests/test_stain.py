"""Stain normalisation, on patches drawn from two known stains."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import encoders
from pipeline.encoders.stain import Macenko, Reinhard, on_arrays, stain_normaliser
from pipeline.errors import ConfigError

STAINS = torch.tensor([[0.62, 0.72, 0.31], [0.15, 0.95, 0.20]])
CPU = torch.device("cpu")


def patch(*, seed: int = 0, strength: tuple[float, float] = (1.0, 1.0), tilt: float = 0.0, edge_px: int = 96) -> Tensor:
    """Draw a patch, float RGB [3, p, p], with haematoxylin here, eosin there, and both in places."""
    generator = torch.Generator().manual_seed(seed)
    stains = STAINS.clone()
    stains[:, 0] += tilt
    stains = stains / stains.norm(dim=1, keepdim=True)
    amounts = torch.rand(edge_px * edge_px, 2, generator=generator)
    amounts[: len(amounts) // 4, 0] = 0
    amounts[len(amounts) // 4 : len(amounts) // 2, 1] = 0
    density = (0.3 + amounts * torch.tensor([1.5, 0.9])) * (amounts > 0) * torch.tensor(strength) @ stains
    return (torch.exp(-density) * 256 - 1).clamp(0, 255).T.reshape(3, edge_px, edge_px)


@pytest.mark.parametrize("method", [Macenko, Reinhard])
def test_the_reference_itself_stays_as_it_is(method: type[Macenko] | type[Reinhard]) -> None:
    reference = patch()
    changed = method.of(reference)(reference[None])[0]
    assert (changed - reference).abs().mean() < 1.0


@pytest.mark.parametrize("method", [Macenko, Reinhard])
def test_normalising_twice_is_normalising_once(method: type[Macenko] | type[Reinhard]) -> None:
    normalise = method.of(patch(seed=1))
    once = normalise(patch(seed=2, strength=(0.8, 1.1), tilt=0.05)[None])
    assert (normalise(once) - once).abs().mean() < 2.0


def test_macenko_brings_another_stain_close_to_the_reference() -> None:
    reference, other = patch(), patch(strength=(0.7, 1.2), tilt=0.1)
    changed = Macenko.of(reference)(other[None])[0]
    before, after = ((image - reference).abs().mean() for image in (other, changed))
    assert after < 0.4 * before


def test_reinhard_brings_the_mean_and_spread_of_tissue_to_the_references() -> None:
    reference, other = Reinhard.of(patch()), patch(strength=(0.7, 1.2), tilt=0.1)
    before, after = Reinhard.of(other), Reinhard.of(reference(other[None])[0])
    for part in ("mean", "spread"):
        wanted = getattr(reference, part)
        off_before, off_after = ((getattr(found, part) - wanted).norm() for found in (before, after))
        assert off_after < 0.3 * off_before


def test_macenko_finds_the_two_stains_haematoxylin_first() -> None:
    found = Macenko.of(patch()).stains
    expected = STAINS / STAINS.norm(dim=1, keepdim=True)
    angle = torch.arccos((found * expected).sum(1).clamp(max=1)) * 180 / math.pi
    assert (angle < 4).all()


@pytest.mark.parametrize("name", ["macenko", "reinhard"])
def test_glass_is_left_as_it_is(name: str) -> None:
    normalise = stain_normaliser(name, CPU)
    assert normalise is not None
    glass = torch.full((1, 3, 32, 32), 240.0)
    torch.testing.assert_close(normalise(glass), glass)


def test_one_stain_alone_has_nothing_to_separate() -> None:
    density = torch.linspace(0.4, 1.5, 64 * 64)[:, None] * STAINS[:1]
    alone = (torch.exp(-density) * 256 - 1).T.reshape(1, 3, 64, 64)
    torch.testing.assert_close(Macenko.default()(alone), alone)


@pytest.mark.parametrize("method", [Macenko, Reinhard])
def test_a_reference_of_glass_is_refused(method: type[Macenko] | type[Reinhard]) -> None:
    with pytest.raises(ValueError, match="too little tissue"):
        method.of(torch.full((3, 32, 32), 240.0))


def test_a_patch_does_not_depend_on_those_beside_it() -> None:
    both = torch.stack([patch(seed=1), patch(seed=2, tilt=0.1)])
    normalise = Macenko.default()
    torch.testing.assert_close(normalise(both)[1], normalise(both[1:])[0])


def test_encoders_see_normalised_patches() -> None:
    patches = patch()[None].permute(0, 2, 3, 1).round().byte().numpy()
    plain = encoders.load("texture")(patches)
    stained = encoders.load("texture", stain="macenko")(patches)
    assert not np.array_equal(plain, stained)
    np.testing.assert_array_equal(encoders.load("texture")(on_arrays("macenko")(patches)), stained)
    network = encoders.load("timm:test_vit", weights="random", stain="reinhard", patch_px=96)
    assert network(patches).shape == (1, 64)


def test_an_unknown_normalisation_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="'vahadane' is not one of none, macenko, reinhard"):
        encoders.load("timm:test_vit", weights="random", stain="vahadane")
