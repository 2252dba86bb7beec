import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline import encoders
from pipeline.encoders.ctranspath import ConvStem, in_current_layout
from pipeline.encoders.torch_encoder import TorchEncoder
from pipeline.errors import ConfigError

DEPTHS, HEADS, WIDTHS = (2, 2, 6, 2), (3, 6, 12, 24), (96, 192, 384, 768)
WINDOWS = (64, 16, 4)
WINDOW_PX, SHIFT_PX = 7, 3


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Give the names and shapes of the authors' 200 tensors, from the published layout."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.0.weight": (12, 3, 3, 3),
        "patch_embed.proj.3.weight": (24, 12, 3, 3),
        "patch_embed.proj.6.weight": (96, 24, 1, 1),
        "patch_embed.proj.6.bias": (96,),
    }
    for layer, width in ((1, 12), (4, 24)):
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"patch_embed.proj.{layer}.{name}"] = (width,)
        shapes[f"patch_embed.proj.{layer}.num_batches_tracked"] = ()
    shapes |= {"patch_embed.norm.weight": (96,), "patch_embed.norm.bias": (96,)}
    for stage, (depth, heads, width) in enumerate(zip(DEPTHS, HEADS, WIDTHS, strict=True)):
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}"
            for norm in ("norm1", "norm2"):
                shapes |= {f"{prefix}.{norm}.weight": (width,), f"{prefix}.{norm}.bias": (width,)}
            shapes |= {
                f"{prefix}.attn.relative_position_bias_table": (169, heads),
                f"{prefix}.attn.relative_position_index": (49, 49),
            }
            for name, out_width, in_width in (
                ("attn.qkv", 3 * width, width),
                ("attn.proj", width, width),
                ("mlp.fc1", 4 * width, width),
                ("mlp.fc2", width, 4 * width),
            ):
                shapes |= {f"{prefix}.{name}.weight": (out_width, in_width), f"{prefix}.{name}.bias": (out_width,)}
            if block % 2 and stage < 3:
                shapes[f"{prefix}.attn_mask"] = (WINDOWS[stage], 49, 49)
        if stage < 3:
            shapes[f"layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            shapes[f"layers.{stage}.downsample.norm.weight"] = (4 * width,)
            shapes[f"layers.{stage}.downsample.norm.bias"] = (4 * width,)
    return shapes | {"norm.weight": (768,), "norm.bias": (768,)}


def published_state(seed: int = 0) -> dict[str, Tensor]:
    """Fill the published layout with seeded values of the size that a trained network has."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in published_shapes().items():
        values = torch.randn(shape, generator=generator)
        if name.endswith(("num_batches_tracked", "relative_position_index")):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("running_var"):
            state[name] = values.abs() + 0.5
        elif len(shape) == 1 and name.endswith("weight"):
            state[name] = 1 + 0.2 * values
        elif name.endswith("relative_position_bias_table"):
            state[name] = 0.5 * values
        else:
            state[name] = values * 1.5 / max(1, int(np.prod(shape[1:]))) ** 0.5
    return state


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return published_state()


@pytest.fixture(scope="module")
def checkpoint(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "ctranspath.pth", {"model": state})


@pytest.fixture(scope="module")
def patches() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)


def attend(tokens: Tensor, state: dict[str, Tensor], prefix: str, heads: int, shift: int) -> Tensor:
    """Attend within windows of tokens (B, H, W, C), written from the Swin paper: one window, one head at a time."""
    batch, height, width, channels = tokens.shape
    depth = channels // heads
    rolled = torch.roll(tokens, (-shift, -shift), (1, 2))
    # tokens of a window attend to each other only where they were neighbours before the roll
    bands = torch.zeros(height)
    if shift:
        bands[height - WINDOW_PX : height - shift] = 1
        bands[height - shift :] = 2
    regions = bands[:, None] * 3 + bands[None, :]
    steps = torch.cartesian_prod(torch.arange(WINDOW_PX), torch.arange(WINDOW_PX))
    offsets = steps[:, None] - steps[None, :] + WINDOW_PX - 1
    rows = offsets[..., 0] * (2 * WINDOW_PX - 1) + offsets[..., 1]
    bias = state[f"{prefix}.relative_position_bias_table"][rows]  # (49, 49, heads)
    output = torch.empty_like(rolled)
    for top in range(0, height, WINDOW_PX):
        for left in range(0, width, WINDOW_PX):
            area = (slice(None), slice(top, top + WINDOW_PX), slice(left, left + WINDOW_PX))
            region = regions[area[1:]].reshape(-1)
            apart = region[:, None] != region[None, :]
            window = rolled[area].reshape(batch, -1, channels)
            qkv = F.linear(window, state[f"{prefix}.qkv.weight"], state[f"{prefix}.qkv.bias"])
            query, key, value = torch.split(qkv, channels, dim=-1)
            parts = []
            for head in range(heads):
                own = slice(head * depth, (head + 1) * depth)
                logits = query[..., own] @ key[..., own].transpose(1, 2) / depth**0.5 + bias[..., head]
                parts.append(logits.masked_fill(apart, -100.0).softmax(-1) @ value[..., own])
            merged = F.linear(torch.cat(parts, -1), state[f"{prefix}.proj.weight"], state[f"{prefix}.proj.bias"])
            output[area] = merged.reshape(batch, WINDOW_PX, WINDOW_PX, channels)
    return torch.roll(output, (shift, shift), (1, 2))


def reference_features(patches: np.ndarray, state: dict[str, Tensor]) -> Tensor:
    """Run the published architecture on the published layout, without timm."""

    def norm(tokens: Tensor, prefix: str) -> Tensor:
        weight = state[f"{prefix}.weight"]
        return F.layer_norm(tokens, weight.shape, weight, state[f"{prefix}.bias"], 1e-5)

    def linear(tokens: Tensor, prefix: str) -> Tensor:
        return F.linear(tokens, state[f"{prefix}.weight"], state.get(f"{prefix}.bias"))

    image = torch.from_numpy(patches).permute(0, 3, 1, 2).double() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    image = (image - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    for convolution, batch_norm in ((0, 1), (3, 4)):
        stem = f"patch_embed.proj.{batch_norm}"
        image = F.conv2d(image, state[f"patch_embed.proj.{convolution}.weight"], stride=2, padding=1)
        image = F.batch_norm(
            image,
            state[f"{stem}.running_mean"],
            state[f"{stem}.running_var"],
            state[f"{stem}.weight"],
            state[f"{stem}.bias"],
            eps=1e-5,
        ).relu()
    image = F.conv2d(image, state["patch_embed.proj.6.weight"], state["patch_embed.proj.6.bias"])
    tokens = norm(image.permute(0, 2, 3, 1), "patch_embed.norm")
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}"
            shift = SHIFT_PX if block % 2 and stage < 3 else 0
            tokens = tokens + attend(norm(tokens, f"{prefix}.norm1"), state, f"{prefix}.attn", heads, shift)
            tokens = tokens + linear(
                F.gelu(linear(norm(tokens, f"{prefix}.norm2"), f"{prefix}.mlp.fc1")), f"{prefix}.mlp.fc2"
            )
        if stage < 3:
            quads = [tokens[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
            prefix = f"layers.{stage}.downsample"
            tokens = linear(norm(torch.cat(quads, -1), f"{prefix}.norm"), f"{prefix}.reduction")
    return norm(tokens, "norm").mean((1, 2))


def test_the_published_layout_has_200_tensors_and_183_find_a_place(state: dict[str, Tensor]) -> None:
    assert len(state) == 200
    assert len(in_current_layout(state)) == 183


def test_features_are_those_of_the_published_architecture(
    state: dict[str, Tensor], checkpoint: Path, patches: np.ndarray
) -> None:
    encoder = encoders.load("ctranspath", weights=checkpoint)
    features = encoder(patches)
    expected = reference_features(patches, state).numpy()
    assert features.shape == (2, 768)
    assert features.dtype == np.float32
    assert expected.std() > 0.1
    np.testing.assert_allclose(features, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layers.0.downsample.reduction.weight", "layers.1.downsample.reduction.weight"),
        ("layers.2.downsample.norm.bias", "layers.3.downsample.norm.bias"),
        ("layers.2.blocks.4.attn.qkv.weight", "layers.2.blocks.4.attn.qkv.weight"),
        ("patch_embed.proj.4.running_var", "patch_embed.proj.4.running_var"),
    ],
)
def test_a_changed_tensor_changes_its_own_place_alone(state: dict[str, Tensor], old: str, new: str) -> None:
    before, after = in_current_layout(state), in_current_layout({**state, old: state[old] + 1})
    assert [name for name in before if not torch.equal(before[name], after[name])] == [new]


@pytest.mark.parametrize("prefix", ["module.", "module.model."])
def test_a_wrappers_prefix_is_taken_off(
    state: dict[str, Tensor], checkpoint: Path, patches: np.ndarray, tmp_path: Path, prefix: str
) -> None:
    wrapped = save(tmp_path / "wrapped.pth", {"state_dict": {prefix + name: state[name] for name in state}})
    bare = encoders.load("ctranspath", weights=checkpoint)
    np.testing.assert_array_equal(encoders.load("ctranspath", weights=wrapped)(patches[:1]), bare(patches[:1]))


def test_a_checkpoint_in_todays_layout_loads_too(
    state: dict[str, Tensor], checkpoint: Path, patches: np.ndarray, tmp_path: Path
) -> None:
    current = save(tmp_path / "current.pth", in_current_layout(state))
    expected = encoders.load("ctranspath", weights=checkpoint)(patches[:1])
    np.testing.assert_array_equal(encoders.load("ctranspath", weights=current)(patches[:1]), expected)


def test_a_missing_tensor_is_an_error_that_names_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    name = "layers.2.blocks.3.mlp.fc1.bias"
    path = save(tmp_path / "a.pth", {"model": {key: state[key] for key in state if key != name}})
    with pytest.raises(ConfigError, match=rf"a\.pth: lacks tensor {name}"):
        encoders.load("ctranspath", weights=path)


def test_an_unexpected_tensor_is_an_error_that_names_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"model": {**state, "layers.4.norm.weight": torch.ones(3)}})
    with pytest.raises(ConfigError, match=r"unexpected tensor layers\.4\.norm\.weight"):
        encoders.load("ctranspath", weights=path)


def test_a_tensor_of_another_shape_is_an_error_that_names_both_shapes(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"model": {**state, "norm.bias": torch.ones(512)}})
    with pytest.raises(ConfigError, match=r"norm\.bias is \(512,\), not \(768,\)"):
        encoders.load("ctranspath", weights=path)


class Harmful:
    """A pickle that would make a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("plain", [True, False])
def test_a_checkpoint_that_holds_code_is_refused_and_not_run(tmp_path: Path, plain: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.pth"
    content = {"model": {"norm.bias": torch.ones(768)}, "more": Harmful(victim)}
    if plain:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ConfigError, match=r"a\.pth: not a checkpoint of tensors alone"):
        encoders.load("ctranspath", weights=path)
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>quota exceeded</html>", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_checkpoint_is_a_config_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ctranspath.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ctranspath\.pth: "):
        encoders.load("ctranspath", weights=path)


def test_a_torn_checkpoint_is_a_config_error(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.pth"
    path.write_bytes(checkpoint.read_bytes()[:1_000_000])
    with pytest.raises(ConfigError, match=r"torn\.pth: .*again"):
        encoders.load("ctranspath", weights=path)


def test_batch_size_does_not_change_the_features(checkpoint: Path, patches: np.ndarray) -> None:
    encoder = encoders.load("ctranspath", weights=checkpoint, batch_size=1)
    assert isinstance(encoder, TorchEncoder)
    together = encoders.load("ctranspath", weights=checkpoint)(patches)
    np.testing.assert_allclose(encoder(patches), together, atol=1e-5)


def test_bf16_stays_close_to_fp32(checkpoint: Path, patches: np.ndarray) -> None:
    full = encoders.load("ctranspath", weights=checkpoint)(patches)
    half = encoders.load("ctranspath", weights=checkpoint, precision="bf16")(patches)
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    assert cosine.min() > 0.995


def test_the_stem_refuses_another_patch_size() -> None:
    with pytest.raises(ValueError, match="patch size 16"):
        ConvStem(patch_size=16)


def test_the_spec_states_scale_source_and_licence() -> None:
    spec = encoders.spec("ctranspath")
    assert (spec.mpp, spec.patch_px, spec.dim) == (1.0, 224, 768)
    assert "non-commercial" in spec.licence
    assert "Xiyue-Wang/TransPath" in spec.source
    assert spec.needs_weights
    assert not spec.standardise
