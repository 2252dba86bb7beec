"""The published encoders: each is built at its real size, and the layouts of their files mean what they should."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor

from pipeline import encoders
from pipeline.encoders import layouts, vit
from pipeline.encoders.catalogue import PUBLISHED
from pipeline.errors import ConfigError
from tests import huggingface
from tests.huggingface import Kind

MILLIONS = {
    "ctranspath": 27.52,
    "chief-ctranspath": 27.52,
    "retccl": 23.51,
    "lunit-bt-rn50": 23.51,
    "lunit-swav-rn50": 23.51,
    "lunit-mocov2-rn50": 23.51,
    "lunit-dino-s16": 21.67,
    "lunit-dino-s8": 21.67,
    "kaiko-s16": 21.67,
    "kaiko-s8": 21.67,
    "kaiko-b16": 85.80,
    "kaiko-b8": 85.81,
    "kaiko-l14": 304.37,
    "phikon": 85.80,
    "phikon-v2": 303.35,
    "uni": 303.35,
    "uni2-h": 681.39,
    "gigapath": 1134.95,
    "h-optimus-0": 1134.77,
    "h-optimus-1": 1134.77,
    "hibou-b": 85.74,
    "hibou-l": 303.66,
    "gpfm": 303.23,
    "conch": 87.57,
    "dinov2-s": 21.63,
    "dinov2-b": 85.72,
    "dinov2-l": 303.23,
    "virchow": 631.23,
    "virchow2": 631.24,
    "h0-mini": 85.74,
    "midnight-12k": 1134.77,
}
"""Parameters of the published models, in millions, without a classifier; of conch the trunk (86.25) and its pool."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_encoder_is_built_at_its_real_size(name: str) -> None:
    spec = PUBLISHED[name]
    with torch.device("meta"):
        model = encoders.build(spec, None).eval()
        features = model(torch.zeros(2, 3, spec.patch_px, spec.patch_px))
    assert features.shape == (2, spec.dim)
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert parameters == pytest.approx(MILLIONS[name.removesuffix("-cls")], abs=0.006)


@pytest.mark.parametrize("name", [name for name, spec in PUBLISHED.items() if spec.options.get("mlp") == "swiglu"])
def test_a_gated_mlp_is_gated_by_silu(name: str) -> None:
    with torch.device("meta"):
        blocks: Any = vit.create(PUBLISHED[name]).blocks
    assert isinstance(blocks[0].mlp.act, torch.nn.SiLU)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_says_where_the_weights_are_and_what_they_may_be_used_for(name: str) -> None:
    spec = PUBLISHED[name]
    assert spec.licence
    assert spec.source.startswith("https://")
    assert bool(spec.hub_id) == bool(spec.hub_file)
    assert spec.weights_file
    assert all(0 < value < 1 for value in spec.mean + spec.std)


def test_both_poolings_of_a_model_share_its_file() -> None:
    assert PUBLISHED["virchow2-cls"].weights_file == PUBLISHED["virchow2"].weights_file
    assert PUBLISHED["virchow2-cls"].dim == 1280


def test_the_mean_leaves_registers_and_class_token_out() -> None:
    torch.manual_seed(0)
    backbone: Any = timm.create_model("test_vit", num_classes=0, global_pool="", reg_tokens=3, img_size=160).eval()
    image = torch.randn(2, 3, 160, 160)
    tokens = backbone.forward_features(image)
    expected = torch.cat([tokens[:, 0], tokens[:, 4:].mean(1)], 1)
    torch.testing.assert_close(vit.Pooled(backbone, with_mean=True)(image), expected)


KINDS = {
    "vit": Kind(dino=False, eps=1e-12),
    "dinov2": Kind(dino=True),
    "dinov2_swiglu": Kind(dino=True, gated=True, patch=14),
    "dinov2_with_registers": Kind(dino=True, gated=True, registers=4, patch=14),
}


def snapshot(kind: Kind, name: str, folder: Path) -> str:
    """Write a snapshot as the hub keeps it, and give the encoder's name."""
    place = folder / f"lab--{name}"
    place.mkdir(parents=True)
    config = {
        "model_type": name.removesuffix("_swiglu"),
        "hidden_size": kind.width,
        "num_hidden_layers": kind.depth,
        "num_attention_heads": kind.heads,
        "image_size": kind.image,
        "patch_size": kind.patch,
        "layer_norm_eps": kind.eps,
        "use_swiglu_ffn": kind.gated,
        **({"mlp_ratio": 4} if kind.dino else {"intermediate_size": kind.mlp}),
    }
    (place / "config.json").write_text(json.dumps(config))
    (place / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5] * 3}))
    safetensors.torch.save_file(huggingface.draw(kind), place / "model.safetensors")
    return f"hf-hub:lab/{name}"


@pytest.mark.parametrize("name", KINDS)
def test_a_snapshot_of_transformers_gives_the_features_of_its_description(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    encoder = encoders.load(snapshot(kind, name, tmp_path), folder=tmp_path)
    patches = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    image = (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    expected = huggingface.class_token(huggingface.draw(kind), image, kind)
    np.testing.assert_allclose(encoder(patches), expected.numpy(), atol=2e-5)


def test_a_snapshot_of_timm_is_built_by_its_config(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model("test_vit", num_classes=0, img_size=96).eval()
    place = tmp_path / "lab--small"
    place.mkdir()
    config = {
        "architecture": "test_vit",
        "num_classes": 0,
        "model_args": {"img_size": 96},
        "pretrained_cfg": {"input_size": [3, 96, 96], "mean": [0.5] * 3, "std": [0.25] * 3, "license": "mit"},
    }
    (place / "config.json").write_text(json.dumps(config))
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    spec = encoders.spec("hf-hub:lab/small", tmp_path)
    assert (spec.patch_px, spec.std, spec.licence) == (96, (0.25, 0.25, 0.25), "mit")
    patches = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    with torch.inference_mode():
        expected = model((torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    found = encoders.load("hf-hub:lab/small", folder=tmp_path)(patches)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_missing_snapshot_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights fetch hf-hub:lab/none`, or copy the hub's folder there"):
        encoders.spec("hf-hub:lab/none", tmp_path)


def test_a_snapshot_of_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lab--text").mkdir()
    (tmp_path / "lab--text" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match=r"describes 'bert'; only timm's models and vit, dinov2"):
        encoders.spec("hf-hub:lab/text", tmp_path)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "vit"}, "config.json: lacks something or has it in another form .KeyError"),
        ({"architecture": "test_vit", "pretrained_cfg": {"mean": [1, 2]}}, "config.json: lacks something or has it in"),
        ({"architecture": "test_vit", "model_args": {"depth": "x"}}, "cannot build"),
        ({"architecture": "test_vit", "model_args": {"embed_dim": -64}}, "cannot build"),
    ],
)
def test_a_snapshot_that_describes_no_model_is_refused(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "lab--odd").mkdir()
    (tmp_path / "lab--odd" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=told):
        encoders.load("hf-hub:lab/odd", folder=tmp_path, weights="random")


def test_a_snapshot_neither_names_a_file_to_read_nor_keeps_its_classifier(tmp_path: Path) -> None:
    (tmp_path / "lab--odd").mkdir()
    stated = {"checkpoint_path": str(tmp_path / "none.pth"), "num_classes": 5, "dynamic_img_size": True}
    described = {"architecture": "test_vit", "model_args": stated, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (tmp_path / "lab--odd" / "config.json").write_text(json.dumps(described))
    plain = encoders.load("timm:test_vit", weights="random")
    assert encoders.load("hf-hub:lab/odd", folder=tmp_path, weights="random").dim == plain.dim


def test_blocks_in_chunks_and_a_teacher_beside_a_head_are_sorted_out() -> None:
    weight = torch.ones(2)
    teacher = {
        "backbone.blocks.1.7.mlp.fc1.weight": weight,
        "backbone.mask_token": weight,
        "dino_head.last_layer.weight": weight,
    }
    assert set(layouts.from_gpfm(teacher, torch.nn.Identity())) == {"blocks.7.mlp.fc1.weight"}
    assert set(layouts.from_gpfm({"blocks.7.ls1.gamma": weight}, torch.nn.Identity())) == {"blocks.7.ls1.gamma"}


def test_a_query_without_its_key_is_an_error_that_names_the_joined_tensor(tmp_path: Path) -> None:
    name = snapshot(KINDS["vit"], "vit", tmp_path)
    path = tmp_path / "lab--vit" / "model.safetensors"
    state: dict[str, Tensor] = safetensors.torch.load_file(path)
    del state["encoder.layer.1.attention.attention.key.weight"]
    safetensors.torch.save_file(state, path)
    with pytest.raises(ConfigError, match=r"lacks tensor blocks\.1\.attn\.qkv\.weight"):
        encoders.load(name, folder=tmp_path)


def test_conch_takes_the_picture_side_of_the_whole_model(tmp_path: Path) -> None:
    spec = PUBLISHED["conch"]
    model = encoders.build(spec, None).eval()
    whole = {f"visual.{name}": tensor for name, tensor in model.state_dict().items()}
    whole |= {"visual.proj_contrast": torch.zeros(2), "visual.attn_pool_caption.query": torch.zeros(2)}
    whole |= {"text.positional_embedding": torch.zeros(2), "logit_scale": torch.zeros(())}
    torch.save(whole, tmp_path / "conch.bin")
    loaded = encoders.build(spec, tmp_path / "conch.bin").eval()
    image = torch.randn(1, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), model(image))
    assert {"trunk.pos_embed", "attn_pool_contrast.query", "attn_pool_contrast.attn.q_proj_weight"} <= set(
        model.state_dict()
    )


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from pipeline.encoders import EncoderSpec\n"
        "class Mean:\n"
        "    spec = EncoderSpec(name='mean', mpp=1.0, patch_px=32, dim=3, mean=(0, 0, 0), std=(1, 1, 1),\n"
        "                       licence='MIT', source='here', needs_weights=False)\n"
        "    mpp, patch_px, dim = 1.0, 32, 3\n"
        "    def __init__(self, *, weights, device, threads, precision, batch_size): self.device = device\n"
        "    def __call__(self, patches): return patches.mean((1, 2), dtype=np.float32)\n"
        "def bare(**settings): return None\n"
        "def broken(**settings): return None\n"
        "broken.spec = Mean.spec\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "mine:Mean"


def test_an_encoder_of_the_users_own_is_called(plugin: str) -> None:
    spec = encoders.spec(plugin)
    assert (spec.name, spec.mpp, spec.patch_px) == ("mine:Mean", 1.0, 32)
    patches = np.full((2, 32, 32, 3), 7, np.uint8)
    np.testing.assert_array_equal(encoders.load(plugin)(patches), np.full((2, 3), 7))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine:bare", "has no `spec`"),
        ("mine:absent", "has no function or class 'absent'"),
        ("nowhere_at_all:Mean", "put the module into the folder you run in"),
    ],
)
def test_a_module_without_an_encoder_is_a_config_error(plugin: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoders.spec(name)


def test_what_is_no_encoder_is_a_config_error(plugin: str) -> None:
    with pytest.raises(ConfigError, match="gave a NoneType without spec"):
        encoders.load("mine:broken")
