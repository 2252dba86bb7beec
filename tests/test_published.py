"""Published checkpoints: every tensor's name and shape, written down apart from timm, and loads at the real size.

The numbers are those of the authors' model cards and files, as public pipelines that run them agree on them; the names
are timm's, in which most of the files are written.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from pipeline import encoders
from pipeline.encoders import vit
from pipeline.encoders.catalogue import PUBLISHED
from tests import huggingface
from tests.huggingface import Kind

Shapes = dict[str, tuple[int, ...]]


class Vit(NamedTuple):
    """A vision transformer: its width, depth, pixels of a token, positions, both widths of the MLP, and extras."""

    width: int
    depth: int
    patch: int
    positions: int
    mlp_in: int
    mlp_out: int
    scaled: bool = True
    registers: int = 0

    def shapes(self) -> Shapes:
        """Give the name and shape of each tensor of its checkpoint."""
        width = self.width
        shapes: Shapes = {
            "cls_token": (1, 1, width),
            "pos_embed": (1, self.positions, width),
            "patch_embed.proj.weight": (width, 3, self.patch, self.patch),
            "patch_embed.proj.bias": (width,),
            "norm.weight": (width,),
            "norm.bias": (width,),
        }
        if self.registers:
            shapes["reg_token"] = (1, self.registers, width)
        linear = {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (self.mlp_in, width),
            "mlp.fc2": (width, self.mlp_out),
        }
        for layer in range(self.depth):
            block = f"blocks.{layer}."
            for name, shape in linear.items():
                shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}{norm}.{part}": (width,) for part in ("weight", "bias")}
            if self.scaled:
                shapes |= {f"{block}ls{number}.gamma": (width,) for number in (1, 2)}
        return shapes


SMALL, BASE, LARGE = (384, 12), (768, 12), (1024, 24)
VITS = {
    "lunit-dino-s16": Vit(*SMALL, 16, 197, 1536, 1536, scaled=False),
    "lunit-dino-s8": Vit(*SMALL, 8, 785, 1536, 1536, scaled=False),
    "kaiko-s16": Vit(*SMALL, 16, 197, 1536, 1536, scaled=False),
    "kaiko-s8": Vit(*SMALL, 8, 785, 1536, 1536, scaled=False),
    "kaiko-b16": Vit(*BASE, 16, 197, 3072, 3072, scaled=False),
    "kaiko-b8": Vit(*BASE, 8, 785, 3072, 3072, scaled=False),
    "kaiko-l14": Vit(*LARGE, 14, 1369, 4096, 4096, registers=4),
    "phikon": Vit(*BASE, 16, 197, 3072, 3072, scaled=False),
    "phikon-v2": Vit(*LARGE, 16, 197, 4096, 4096),
    "uni": Vit(*LARGE, 16, 197, 4096, 4096),
    "uni2-h": Vit(1536, 24, 14, 256, 8192, 4096, registers=8),
    "gigapath": Vit(1536, 40, 16, 197, 8192, 4096),
    "h-optimus-0": Vit(1536, 40, 14, 256, 8192, 4096, registers=4),
    "h-optimus-1": Vit(1536, 40, 14, 256, 8192, 4096, registers=4),
    "hibou-b": Vit(*BASE, 14, 256, 4096, 2048, registers=4),
    "hibou-l": Vit(*LARGE, 14, 256, 5472, 2736, registers=4),
    "gpfm": Vit(*LARGE, 14, 257, 4096, 4096),
    "dinov2-s": Vit(*SMALL, 14, 257, 1536, 1536),
    "dinov2-b": Vit(*BASE, 14, 257, 3072, 3072),
    "dinov2-l": Vit(*LARGE, 14, 257, 4096, 4096),
    "virchow": Vit(1280, 32, 14, 257, 6832, 3416),
    "virchow2": Vit(1280, 32, 14, 261, 6832, 3416, registers=4),
    "h0-mini": Vit(*BASE, 14, 256, 4096, 2048, registers=4),
    "midnight-12k": Vit(1536, 40, 14, 257, 8192, 4096),
}

CONCH_POOL: Shapes = {
    "attn_pool_contrast.query": (1, 512),
    "attn_pool_contrast.ln_q.weight": (512,),
    "attn_pool_contrast.ln_q.bias": (512,),
    "attn_pool_contrast.ln_k.weight": (768,),
    "attn_pool_contrast.ln_k.bias": (768,),
    "attn_pool_contrast.attn.q_proj_weight": (512, 512),
    "attn_pool_contrast.attn.k_proj_weight": (512, 768),
    "attn_pool_contrast.attn.v_proj_weight": (512, 768),
    "attn_pool_contrast.attn.in_proj_bias": (1536,),
    "attn_pool_contrast.attn.out_proj.weight": (512, 512),
    "attn_pool_contrast.attn.out_proj.bias": (512,),
    "ln_contrast.weight": (512,),
    "ln_contrast.bias": (512,),
}
"""What CONCH's picture side has beside its trunk, a ViT-B/16 for 448 px."""


def conch_shapes() -> Shapes:
    trunk = Vit(*BASE, 16, 785, 3072, 3072, scaled=False).shapes()
    return {f"trunk.{name}": shape for name, shape in trunk.items()} | CONCH_POOL


def fill(shapes: Shapes) -> dict[str, Tensor]:
    """Fill tensors with seeded values of the size that a trained network has; fast, as they repeat."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1 << 20, generator=generator) * 0.02
    state = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        drawn = pool.repeat(-(-count // len(pool)))[:count].reshape(shape)
        state[name] = drawn + 1 if "norm" in name and name.endswith("weight") else drawn
    return state


def one_patch(name: str) -> np.ndarray:
    edge = PUBLISHED[name].patch_px
    return np.random.default_rng(0).integers(0, 256, (1, edge, edge, 3), dtype=np.uint8)


def test_every_vision_transformer_is_written_down() -> None:
    transformers = {name for name, spec in PUBLISHED.items() if spec.builder == "vit"}
    assert {name for name in transformers if not name.endswith("-cls")} == set(VITS)


@pytest.mark.parametrize("name", VITS)
def test_the_model_has_exactly_the_tensors_of_its_checkpoint(name: str) -> None:
    with torch.device("meta"):
        state = vit.create(PUBLISHED[name]).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == VITS[name].shapes()


def test_conch_has_exactly_the_tensors_of_its_picture_side() -> None:
    with torch.device("meta"):
        state = encoders.build(PUBLISHED["conch"], None).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == conch_shapes()


@pytest.mark.parametrize("name", ["retccl", "lunit-bt-rn50"])
def test_a_resnets_file_is_that_of_torchvision_without_its_classifier(name: str, tmp_path: Path) -> None:
    network = torchvision.models.resnet50(weights=None).eval()
    network.fc = torch.nn.Identity()
    torch.save(network.state_dict(), tmp_path / "resnet.pth")
    patches = one_patch(name)
    spec = PUBLISHED[name]
    image = (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - torch.tensor(spec.mean)[:, None, None]) / (
        torch.tensor(spec.std)[:, None, None]
    )
    with torch.inference_mode():
        expected = network(image).numpy()
    found = encoders.load(name, weights=tmp_path / "resnet.pth")(patches)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["lunit-dino-s8", "kaiko-b16", "h0-mini", "uni"])
def test_a_checkpoint_of_the_published_tensors_is_loaded_and_encodes(name: str, tmp_path: Path) -> None:
    spec = PUBLISHED[name]
    path = tmp_path / spec.weights_file
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(fill(VITS[name].shapes()), path)
    else:
        torch.save(fill(VITS[name].shapes()), path)
    encoder = encoders.load(name, folder=tmp_path, threads=2)
    features = encoder(np.concatenate([one_patch(name), np.full_like(one_patch(name), 200)]))
    assert features.shape == (2, spec.dim)
    assert np.isfinite(features).all()
    assert np.abs(features[0] - features[1]).max() > 1e-3


HUGGINGFACE = {
    "phikon": Kind(dino=False, width=768, depth=12, heads=12, mlp=3072, eps=1e-12),
    "hibou-b": Kind(dino=True, gated=True, registers=4, patch=14, width=768, depth=12, heads=12, mlp=3072),
}


@pytest.mark.parametrize("name", HUGGINGFACE)
def test_a_file_of_transformers_gives_the_features_of_its_description(name: str, tmp_path: Path) -> None:
    kind, spec = HUGGINGFACE[name], PUBLISHED[name]
    state = huggingface.draw(kind, scale=0.02)
    safetensors.torch.save_file(state, tmp_path / spec.weights_file)
    patches = one_patch(name)
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    expected = huggingface.class_token(state, (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - mean) / std, kind)
    found = encoders.load(name, folder=tmp_path, threads=2)(patches)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_conchs_pool_is_attention_of_eight_heads_to_all_tokens() -> None:
    state = fill(CONCH_POOL)
    state["attn_pool_contrast.query"] *= 50
    network = encoders.build(PUBLISHED["conch"], None).eval()
    network.load_state_dict(state, strict=False)
    tokens = torch.randn(2, 785, 768, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = network.ln_contrast(network.attn_pool_contrast(tokens))  # type: ignore[operator]
    part = {name.removeprefix("attn_pool_contrast."): tensor for name, tensor in state.items()}
    bias = part["attn.in_proj_bias"].view(3, 512)
    keys = torch.nn.functional.layer_norm(tokens, (768,), part["ln_k.weight"], part["ln_k.bias"])
    query = torch.nn.functional.layer_norm(part["query"], (512,), part["ln_q.weight"], part["ln_q.bias"])
    query = (query @ part["attn.q_proj_weight"].T + bias[0]).view(8, 64)
    key = (keys @ part["attn.k_proj_weight"].T + bias[1]).view(2, 785, 8, 64)
    value = (keys @ part["attn.v_proj_weight"].T + bias[2]).view(2, 785, 8, 64)
    weight = (torch.einsum("hd,bthd->bht", query, key) / 8).softmax(-1)
    pooled = torch.einsum("bht,bthd->bhd", weight, value).flatten(1)
    pooled = pooled @ part["attn.out_proj.weight"].T + part["attn.out_proj.bias"]
    expected = torch.nn.functional.layer_norm(pooled, (512,), state["ln_contrast.weight"], state["ln_contrast.bias"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
