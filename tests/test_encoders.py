import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import encoders
from pipeline.encoders.torch_encoder import TorchEncoder
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[1]
MODEL = "timm:test_vit"


@pytest.fixture(scope="module")
def patches() -> NDArray[np.uint8]:
    edge_px = encoders.spec(MODEL).patch_px
    return np.random.default_rng(0).integers(0, 256, (5, edge_px, edge_px, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """Give a model with its classifier, as timm publishes it."""
    torch.manual_seed(1)
    model: nn.Module = timm.create_model("test_vit", pretrained=False).eval()
    return model


@pytest.fixture
def weights(published: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(published.state_dict(), path)
    return path


def test_importing_the_encoders_imports_no_torch() -> None:
    program = (
        "import sys, pipeline.encoders as e\n"
        "e.spec('texture'), e.spec('ctranspath')\n"
        "assert not {'torch', 'timm', 'cv2', 'scipy', 'sklearn', 'huggingface_hub', 'zarr'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize("first", ["pipeline.weights", "pipeline.encoders.registry", "pipeline.encoders"])
def test_the_modules_import_in_any_order(first: str) -> None:
    program = f"import {first}, pipeline.weights, pipeline.encoders"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_an_unknown_encoder_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'textures' is not an encoder; did you mean texture"):
        encoders.spec("textures")


def test_an_unknown_timm_model_is_an_error_that_names_close_ones() -> None:
    with pytest.raises(ConfigError, match="no model 'resnet17'; did you mean resnet18"):
        encoders.spec("timm:resnet17")
    with pytest.raises(ConfigError, match=r"foo.* leave out the tag"):
        encoders.spec("timm:resnet18.foo")


def test_a_timm_spec_takes_patch_size_and_normalisation_from_timm() -> None:
    spec = encoders.spec(MODEL)
    assert (spec.mpp, spec.patch_px, spec.mean, spec.std) == (None, 160, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert spec.hub_id == "timm/test_vit.r160_in1k"


def test_weights_path_prefers_what_the_user_names(tmp_path: Path) -> None:
    assert encoders.weights_path("ctranspath", tmp_path, None) == tmp_path / "ctranspath.pth"
    assert encoders.weights_path("ctranspath", tmp_path, "") == tmp_path / "ctranspath.pth"
    assert encoders.weights_path("ctranspath", tmp_path, "mine/a.pth") == Path("mine/a.pth")
    assert encoders.weights_path("texture", tmp_path, None) is None
    assert encoders.weights_path(MODEL, tmp_path, "random") is None


@pytest.mark.parametrize("name", ["ctranspath", MODEL])
def test_missing_weights_are_an_error_that_says_where_how_and_what_instead(tmp_path: Path, name: str) -> None:
    for attempt in (
        lambda: encoders.check_weights(name, folder=tmp_path, weights=None),
        lambda: encoders.load(name, folder=tmp_path),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt()
        message = str(caught.value)
        assert str(encoders.weights_path(name, tmp_path, None)) in message
        assert f"python -m pipeline weights fetch {name}" in message
        assert "encoder.name: texture" in message


def test_a_named_file_that_is_missing_is_not_to_be_fetched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weights at .*gone\.pth; name the file"):
        encoders.check_weights("ctranspath", folder=tmp_path, weights=tmp_path / "gone.pth")


def test_check_weights_gives_the_digest_or_nothing(weights: Path, tmp_path: Path) -> None:
    digest = encoders.check_weights(MODEL, folder=tmp_path, weights=weights)
    assert len(digest) == 64
    assert encoders.check_weights("texture", folder=tmp_path, weights=None) == ""
    assert encoders.check_weights(MODEL, folder=tmp_path, weights="random") == ""


def test_weights_other_than_the_published_stop_the_run_unless_they_are_named(tmp_path: Path) -> None:
    path = tmp_path / "ctranspath.pth"
    path.write_bytes(b"others")
    with pytest.raises(ConfigError, match=r"ctranspath\.pth is .* of the published file 7c998.* name it in"):
        encoders.check_weights("ctranspath", folder=tmp_path, weights=None)
    assert len(encoders.check_weights("ctranspath", folder=tmp_path, weights=path)) == 64


def test_features_are_those_of_timm_after_its_own_normalisation(
    published: nn.Module, weights: Path, patches: NDArray[np.uint8]
) -> None:
    encoder = encoders.load(MODEL, weights=weights)
    image = (torch.from_numpy(patches).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = published.forward_head(published.forward_features(image), pre_logits=True)  # type: ignore[operator]
    features = encoder(patches)
    assert features.dtype == np.float32
    assert features.shape == (5, encoder.dim) == (5, 64)
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)


def test_weights_fetched_into_the_folder_are_found(weights: Path, tmp_path: Path) -> None:
    weights.rename(tmp_path / encoders.spec(MODEL).weights_file)
    assert encoders.load(MODEL, folder=tmp_path).dim == 64


def test_random_weights_are_seeded_and_warn(patches: NDArray[np.uint8], caplog: pytest.LogCaptureFixture) -> None:
    first = encoders.load(MODEL, weights="random")(patches)
    assert "features mean nothing" in caplog.text
    torch.manual_seed(99)
    np.testing.assert_array_equal(encoders.load(MODEL, weights="random")(patches), first)


def test_loading_leaves_torchs_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoders.load(MODEL, weights="random")
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "what"), [("blocks.1.norm1.bias", "lacks"), ("blocks.9.norm1.bias", "unexpected")])
def test_weights_that_do_not_fit_are_an_error_that_names_the_tensor(
    published: nn.Module, tmp_path: Path, name: str, what: str
) -> None:
    state = published.state_dict()
    if what == "lacks":
        del state[name]
    else:
        state[name] = torch.ones(64)
    path = tmp_path / "vit.pth"
    torch.save(state, path)
    with pytest.raises(ConfigError, match=rf"vit\.pth: .*{what}.* tensor {name}"):
        encoders.load(MODEL, weights=path)


def test_a_damaged_safetensors_file_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ConfigError, match=r"vit\.safetensors: cannot be read as weights"):
        encoders.load(MODEL, weights=path)


@pytest.mark.parametrize("seed", range(20))
def test_a_file_of_any_bytes_is_a_config_error(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "vit.pth"
    path.write_bytes(b"\x80\x02" * (seed % 2) + np.random.default_rng(seed).bytes(200))
    with pytest.raises(ConfigError, match=r"vit\.pth: "):
        encoders.load(MODEL, weights=path)


def test_a_file_of_something_else_than_tensors_is_a_config_error(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    torch.save({"epoch": 3, "note": "no tensors"}, path)
    with pytest.raises(ConfigError, match="holds no tensors by name"):
        encoders.load(MODEL, weights=path)


class Small(nn.Module):
    """Average the colours; run out of memory above a batch size, as a device does."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits = fits
        self.batches: list[int] = []

    def forward(self, image: Tensor) -> Tensor:
        if len(image) > self.fits:
            raise torch.OutOfMemoryError(f"{len(image)} patches")
        self.batches.append(len(image))
        return image.mean((2, 3))


def test_a_batch_that_does_not_fit_is_halved_and_stays_so(
    patches: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    model = Small(fits=3)
    many = np.concatenate([patches, patches, patches])
    encoder = TorchEncoder(model, replace(encoders.spec(MODEL), dim=3), batch_size=8)
    with caplog.at_level(logging.INFO):
        features = encoder(many)
    np.testing.assert_allclose(features, many.mean((1, 2)) / 127.5 - 1, atol=1e-4)
    assert (model.batches, encoder.batch_size) == ([2] * 7 + [1], 2)
    assert "out of memory at 8 patches; going on with 4" in caplog.text


def test_one_patch_that_does_not_fit_is_a_config_error(patches: NDArray[np.uint8]) -> None:
    encoder = TorchEncoder(Small(fits=0), replace(encoders.spec(MODEL), dim=3))
    with pytest.raises(ConfigError, match="one patch does not fit"):
        encoder(patches)


def test_patches_of_another_size_are_refused(patches: NDArray[np.uint8]) -> None:
    encoder = encoders.load(MODEL, weights="random")
    with pytest.raises(ValueError, match=r"B patches of \(160, 160, 3\)"):
        encoder(patches[:, :96, :96])
    with pytest.raises(ValueError, match="float32"):
        encoder(patches.astype(np.float32))
    assert encoder(patches[:0]).shape == (0, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp8"}, "'fp8' is not one of auto, fp32"),
        ({"precision": "fp16"}, "on the CPU, where that is slower than fp32"),
        ({"device": "gpu"}, "'gpu' is not one that torch knows"),
        ({"device": "cuda:97"}, "torch sees"),
        ({"threads": 0}, "0 threads"),
        ({"batch_size": 0}, "batch size 0"),
    ],
)
def test_a_setting_that_cannot_be_had_is_a_config_error(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoders.load(MODEL, weights="random", **settings)  # type: ignore[arg-type]


def test_no_device_is_taken_for_weights_that_do_not_fit(weights: Path) -> None:
    taken: list[str] = []

    def take() -> str:
        taken.append("cpu")
        return taken[-1]

    with pytest.raises(ConfigError, match="give the weights of this very model"):
        encoders.load("timm:test_efficientnet", weights=weights, device=take)
    assert not taken
    encoders.load(MODEL, weights=weights, device=take)
    assert taken == ["cpu"]


def test_a_batch_size_grows_as_long_as_it_pays() -> None:
    from pipeline.encoders.batch_size import LARGEST, fastest

    assert fastest(lambda size: 1.0 + 0.0001 * size) == LARGEST
    assert fastest(lambda size: 0.01 * max(size, 64)) == 64

    def small(size: int) -> float:
        if size > 100:
            raise torch.OutOfMemoryError
        return 1.0

    assert fastest(small) == 64


def test_what_was_measured_is_remembered() -> None:
    from pipeline.encoders.batch_size import find_batch_size

    sizes: list[int] = []
    key = ("an encoder", "a device")
    found = find_batch_size(sizes.append, key=key, device=torch.device("cpu"))
    assert sizes
    sizes.clear()
    assert find_batch_size(sizes.append, key=key, device=torch.device("cpu")) == found
    assert not sizes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own, on its first use
def test_a_compiled_network_gives_the_same_features_and_takes_any_number_of_patches(
    weights: Path, patches: NDArray[np.uint8]
) -> None:
    compiled = encoders.load(MODEL, weights=weights, compiled=True, batch_size=4)
    np.testing.assert_allclose(compiled(patches), encoders.load(MODEL, weights=weights)(patches), atol=1e-4)
