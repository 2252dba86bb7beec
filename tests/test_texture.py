import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import encoders
from pipeline.encoders import descriptors
from pipeline.encoders.texture import describe, feature_names, stain_planes

PURPLE, PINK, WHITE = (90, 60, 140), (225, 160, 200), (243, 243, 245)


def tissue(seed: int, *, nuclei: int = 60, radius_px: int = 4, edge_px: int = 224) -> NDArray[np.uint8]:
    """Paint eosin with round nuclei of one size and a little noise."""
    rng = np.random.default_rng(seed)
    patch = np.full((edge_px, edge_px, 3), PINK, np.uint8)
    for x, y in rng.integers(0, edge_px, (nuclei, 2)):
        cv2.circle(patch, (int(x), int(y)), radius_px, PURPLE, -1, cv2.LINE_AA)
    noise = rng.normal(0, 4, patch.shape)
    return np.clip(patch + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def patches() -> NDArray[np.uint8]:
    return np.stack([tissue(seed, nuclei=30 + 20 * seed) for seed in range(5)])


def test_a_row_does_not_depend_on_its_batch_or_on_threads(patches: NDArray[np.uint8]) -> None:
    together = encoders.load("texture")(patches)
    alone = np.concatenate([encoders.load("texture")(patch[None]) for patch in patches])
    threaded = encoders.load("texture", threads=3)(patches[::-1])[::-1]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together, threaded)


def test_a_row_does_not_depend_on_where_its_patch_lies_in_memory(patches: NDArray[np.uint8]) -> None:
    encode = encoders.load("texture")
    expected = encode(patches[:1])
    for offset in (1, 3, 8, 17):
        memory = np.zeros(patches[0].size + offset, np.uint8)
        moved = memory[offset:].reshape(patches[0].shape)
        moved[:] = patches[0]
        np.testing.assert_array_equal(encode(moved[None]), expected)
    strided = np.repeat(patches[:1], 2, axis=2)[:, :, ::2]
    np.testing.assert_array_equal(encode(strided), expected)


@pytest.mark.parametrize("edge_px", [32, 101, 224, 256])
def test_every_plain_or_noisy_patch_has_finite_features_that_survive_float16(edge_px: int) -> None:
    colours = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), PURPLE, PINK]
    plain = [np.full((edge_px, edge_px, 3), colour, np.uint8) for colour in colours]
    noise = np.random.default_rng(0).integers(0, 256, (edge_px, edge_px, 3), dtype=np.uint8)
    checks = np.indices((edge_px, edge_px)).sum(axis=0)[..., None].repeat(3, axis=2) % 2 * 255
    features = encoders.load("texture")(np.stack([*plain, noise, checks.astype(np.uint8)]))
    assert np.isfinite(features).all()
    assert np.abs(features).max() < 100
    half = features.astype(np.float16).astype(np.float32)
    assert np.abs(half - features).max() < 0.02


def test_the_declared_dimension_and_names_are_those_of_the_features(patches: NDArray[np.uint8]) -> None:
    encode = encoders.load("texture")
    names = feature_names()
    assert encode(patches).shape == (len(patches), encode.dim)
    assert encode(patches).dtype == np.float32
    assert len(names) == len(set(names)) == encode.dim <= 512
    assert encoders.spec("texture").dim == encode.dim
    assert list(describe(patches[0])) == list(names)
    assert encode(patches[:0]).shape == (0, encode.dim)


def test_the_encoder_says_its_own_scale_and_that_it_wants_standardising() -> None:
    spec = encoders.spec("texture")
    assert (spec.mpp, spec.patch_px, spec.any_scale, spec.standardise) == (0.5, 224, True, True)
    assert not spec.needs_weights
    assert not spec.uses_gpu


def test_a_stain_is_found_in_its_own_plane() -> None:
    # optical densities of pure stains, after Ruifrok & Johnston, made into 8-bit colours
    for stain, name, other in (
        ((0.65, 0.70, 0.29), "haematoxylin", "eosin"),
        ((0.07, 0.99, 0.11), "eosin", "haematoxylin"),
    ):
        density = 0.8 * np.asarray(stain) / np.linalg.norm(stain)
        colour = (256 * 10**-density - 1).round().astype(np.uint8)
        planes = stain_planes(np.broadcast_to(colour, (32, 32, 3)).copy())
        assert planes[name].mean() == pytest.approx(0.8, abs=0.02)
        assert planes[other].mean() == pytest.approx(0.0, abs=0.02)


def test_turning_or_mirroring_a_patch_leaves_its_features() -> None:
    patch = tissue(3)
    encode = encoders.load("texture")
    turned = encode(np.stack([patch, np.rot90(patch), patch[::-1], np.rot90(patch, 2)]))
    spread = np.abs(encode(np.stack([tissue(seed, nuclei=120) for seed in range(6)])) - turned[0]).max(axis=0)
    # blocks and Gaussians are symmetric; only OpenCV's rounding of sums differs
    assert np.abs(turned[1:] - turned[0]).max() < 1e-2
    assert spread.max() > 0.3


def test_more_nuclei_larger_nuclei_and_darker_nuclei_each_move_their_feature() -> None:
    few, many = describe(tissue(0, nuclei=20)), describe(tissue(0, nuclei=120))
    small, large = describe(tissue(0, nuclei=40, radius_px=3)), describe(tissue(0, nuclei=40, radius_px=8))
    assert many["nuclei_otsu.count"] > few["nuclei_otsu.count"] + 0.5
    assert many["haematoxylin.octave1.blobs0.03.count"] > few["haematoxylin.octave1.blobs0.03.count"] + 0.5
    assert large["nuclei_otsu.area"] > small["nuclei_otsu.area"] + 1
    assert large["haematoxylin.octave3.band0.amplitude"] > small["haematoxylin.octave3.band0.amplitude"]
    pale = tissue(0, nuclei=40)
    dark = np.where(pale[..., :1] < 130, pale // 2, pale)
    assert describe(dark)["haematoxylin.q0.99"] > describe(pale)["haematoxylin.q0.99"] + 0.1


def test_parallel_fibres_are_coherent_and_noise_is_not() -> None:
    rows = np.indices((128, 128))[0]
    fibres = (0.5 + 0.3 * np.sin(rows / 3)).astype(np.float32)
    noise = np.random.default_rng(0).normal(0.5, 0.3, (128, 128)).astype(np.float32)
    for plane in (fibres, np.ascontiguousarray(fibres.T)):
        assert descriptors.orientation(plane, window_px=8)["coherence_whole"] > 0.95
    assert descriptors.orientation(noise, window_px=8)["coherence_whole"] < 0.1


def test_binary_patterns_are_shares_and_a_flat_plane_is_one_pattern() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    assert sum(descriptors.binary_patterns(noise).values()) == pytest.approx(1)
    assert descriptors.binary_patterns(np.full((64, 64), 9, np.uint8))["pattern0"] == 1
    assert descriptors.binary_patterns(noise) == descriptors.binary_patterns(np.ascontiguousarray(np.rot90(noise)))


def test_granulometry_finds_the_size_of_bright_squares() -> None:
    plane = np.zeros((120, 120), np.uint8)
    for start in range(8, 104, 24):
        plane[start : start + 9, start : start + 9] = 200
    grains = descriptors.granulometry(plane, sizes_px=(3, 5, 9, 15, 25), step=0.01)
    assert max((name for name in grains if name.startswith("open")), key=grains.__getitem__) == "open15"
    assert grains["open5"] == 0


@pytest.mark.parametrize(
    "patches",
    [
        np.zeros((2, 224, 224, 3), np.float32),
        np.zeros((224, 224, 3), np.uint8),
        np.zeros((1, 224, 200, 3), np.uint8),
        np.zeros((1, 16, 16, 3), np.uint8),
    ],
    ids=["floats", "one patch", "not square", "too small"],
)
def test_what_is_no_batch_of_patches_is_refused(patches: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="give uint8"):
        encoders.load("texture")(patches)


def test_texture_needs_no_torch() -> None:
    program = (
        "import sys, numpy\n"
        "from pipeline import encoders\n"
        "assert 'cv2' not in sys.modules, 'cv2 is imported before it is needed'\n"
        "encoders.load('texture')(numpy.zeros((1, 224, 224, 3), numpy.uint8))\n"
        "assert not {'torch', 'sklearn', 'scipy', 'timm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


def test_a_linear_probe_tells_tumour_from_normal_tissue(shared_data: Path) -> None:
    archive_path = shared_data / "tissue.zip"
    if not archive_path.is_file():
        pytest.skip("the labelled patches are not on this machine")
    patches, labels = [], []
    with zipfile.ZipFile(archive_path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        for kind in ("AC", "H"):
            for name in [name for name in names if name.startswith(f"{kind}/")][::5][:90]:
                patches.append(simplejpeg.decode_jpeg(archive.read(name), colorspace="RGB"))
                labels.append(kind == "AC")
    # through float16, as a bag stores them
    features = encoders.load("texture")(np.stack(patches)).astype(np.float16).astype(np.float32)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    probability = cross_val_predict(probe, features, labels, cv=folds, method="predict_proba")[:, 1]
    assert roc_auc_score(labels, probability) > 0.98
