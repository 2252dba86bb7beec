"""What runs on a GPU, held against the CPU. Where there is no GPU all of it is skipped."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag, FollowUp
from asmil.inference import attention, evidence, predict
from asmil.options import Precision
from asmil.recipes import source_config, source_trainer
from asmil.registry import MODELS
from asmil.tasks import Classification, Regression, SurvivalTask, Task
from asmil.training import FitConfig, Trainer, fit
from pipeline import checkpoint, encoders, store
from pipeline.chunks import Chunks
from pipeline.encoding import encode
from pipeline.slide import open_slide
from tests.slides import tissue_like, write_svs
from tests.test_baselines import make
from tests.test_baselines_training import planted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]

ROOT = Path(__file__).parents[1]
NETWORKS = ("timm:test_vit", "timm:test_efficientnet", "timm:test_convnext")
QUICK = FitConfig(epochs=3, learning_rate=1e-3)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a slide of 400 patches of 160 px, each of another look."""
    return write_svs(tmp_path_factory.mktemp("slides") / "a.svs", tissue_like(3200, 3200))


def patches_of(path: Path, count: int, *, edge_px: int) -> NDArray[np.uint8]:
    with open_slide(path) as opened:
        coords = corners(3200, edge_px)[:count]
        pieces = [piece.copy() for _, piece in opened.patches(coords, patch_px=edge_px, mpp=0.5, threads=2)]
    return np.concatenate(pieces)


def corners(side_px: int, edge_px: int) -> NDArray[np.int32]:
    edge = np.arange(0, side_px - edge_px + 1, edge_px, dtype=np.int32)
    y, x = np.meshgrid(edge, edge, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


def cosines(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Give the cosine between rows of the same place."""
    a, b = (np.asarray(each, np.float64) for each in (first, second))
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def stage(slide: Path, bag: Path, *, device: str) -> NDArray[np.float16]:
    """Embed a slide in small batches."""
    model = encoders.load(NETWORKS[0], weights="random", device=device, precision="fp32", batch_size=7)
    coords = corners(3200, model.patch_px)
    chunks = Chunks(bag, digest="d", rows=len(coords))
    with open_slide(slide) as opened:
        encode(
            opened,
            coords,
            chunks=chunks,
            load=lambda: model,
            patch_px=model.patch_px,
            mpp=0.5,
            threads=4,
            on_cpu=device == "cpu",
        )
    return np.concatenate([chunks.load(index)[0] for index in range(chunks.count)])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stain", ["none", "macenko", "reinhard"])
def test_encoder_in_float32_gives_the_features_of_the_cpu(name: str, stain: str, slide: Path) -> None:
    edge_px = encoders.spec(name).patch_px
    patches = patches_of(slide, 12, edge_px=edge_px)
    cpu = encoders.load(name, weights="random", stain=stain)(patches)
    gpu = encoders.load(name, weights="random", stain=stain, device="cuda", precision="fp32", batch_size=5)(patches)
    np.testing.assert_allclose(gpu, cpu, atol=2e-4 * np.abs(cpu).max())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_encoder_in_16_bits_points_where_the_cpu_does(name: str, precision: str, slide: Path) -> None:
    patches = patches_of(slide, 12, edge_px=encoders.spec(name).patch_px)
    cpu = encoders.load(name, weights="random")(patches)
    gpu = encoders.load(name, weights="random", device="cuda", precision=precision, batch_size=5)(patches)
    assert gpu.dtype == np.float32
    assert cosines(gpu, cpu).min() > 0.999


def test_patches_of_another_size_are_resized_on_the_device(slide: Path) -> None:
    patches = patches_of(slide, 6, edge_px=200)
    cpu = encoders.load(NETWORKS[0], weights="random", patch_px=200)(patches)
    gpu = encoders.load(NETWORKS[0], weights="random", patch_px=200, device="cuda", precision="fp32")(patches)
    np.testing.assert_allclose(gpu, cpu, atol=2e-4 * np.abs(cpu).max())


def test_stage_gives_every_patch_its_own_features_through_reused_buffers(slide: Path, tmp_path: Path) -> None:
    """Buffers in page-locked memory are filled again while the GPU works: none may be before it was read."""
    cpu, gpu = (stage(slide, tmp_path / f"{device}.zarr.zip", device=device) for device in ("cpu", "cuda"))
    assert len(cpu) == 400
    np.testing.assert_allclose(gpu, cpu, atol=1e-3 * np.abs(cpu).max())


def test_batch_size_is_found_and_remembered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    first = encoders.load(NETWORKS[0], weights="random", device="cuda")
    assert "patches at once" in caplog.text
    caplog.clear()
    second = encoders.load(NETWORKS[0], weights="random", device="cuda")
    assert "patches at once" not in caplog.text
    assert getattr(first, "batch_size") == getattr(second, "batch_size") >= 16  # noqa: B009


OUT_OF_MEMORY = """
import logging, sys
import numpy as np, torch
from pipeline import encoders
logging.basicConfig(level="INFO", stream=sys.stdout)
patches = np.random.default_rng(0).integers(0, 256, (512, 160, 160, 3), dtype=np.uint8)
whole = encoders.load("timm:test_vit", weights="random", device="cuda", precision="fp32", batch_size=512)
expected = whole(patches)
del whole
torch.cuda.empty_cache()
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 200 * 2**20) / total)
tight = encoders.load("timm:test_vit", weights="random", device="cuda", precision="fp32", batch_size=512)
found = tight(patches)
assert tight.batch_size < 512, tight.batch_size
np.testing.assert_allclose(found, expected, atol=1e-3)
print("halved to", tight.batch_size)
"""


def test_real_want_of_memory_halves_the_batch_and_loses_no_patch() -> None:
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out of memory at 512 patches" in done.stdout
    assert "halved to" in done.stdout


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own, on its first use
def test_compiled_encoder_gives_the_same_features(slide: Path) -> None:
    patches = patches_of(slide, 12, edge_px=encoders.spec(NETWORKS[0]).patch_px)
    plain = encoders.load(NETWORKS[0], weights="random", device="cuda", batch_size=8)(patches)
    compiled = encoders.load(NETWORKS[0], weights="random", device="cuda", batch_size=8, compiled=True)(patches)
    assert cosines(compiled, plain).min() > 0.999


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_model_trains_with_its_anchor_and_predicts_alike_on_both(name: str, precision: Precision) -> None:
    config = FitConfig(epochs=2, learning_rate=1e-3, precision=precision, class_weights="inverse_frequency")
    bags, model = planted(6, seed=0), make(name, d_in=16, classes=2)
    anchor = AnchorRegularizer(model, AnchorConfig(half_life_epochs=1))
    result = fit(model, bags, planted(4, seed=1), anchor=anchor, config=config, seed=0, device="cuda")
    assert all(np.isfinite(row["loss"]) for row in result.history)
    states = {**result.best_state, **(result.anchor_state or {})}
    assert all(value.isfinite().all() for value in states.values() if value.is_floating_point())
    found = {device: predict(model, bags[1].features, device=device) for device in ("cuda", "cpu")}
    np.testing.assert_allclose(found["cuda"].logits, found["cpu"].logits, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["cuda"].score, found["cpu"].score, rtol=1e-3, atol=1e-5)
    for give in (attention, evidence):
        gpu, cpu = (give(model, bags[1].features, device=device) for device in ("cuda", "cpu"))
        np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["asmil", "gated_abmil", "max_pooling"])
def test_first_step_is_that_of_the_cpu(name: str) -> None:
    """Without noise the two compute the same; what is drawn differs between them."""
    losses = []
    for device in ("cpu", "cuda"):
        model = make(name, d_in=16, classes=2, **({"token_drop": 0.0, "dropout": 0.0} if name == "asmil" else {}))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        bags = planted(6, seed=0)
        result = fit(model, bags, bags, anchor=AnchorRegularizer(model), config=QUICK, seed=0, device=device)
        losses.append([row["loss"] for row in result.history])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_stopped_training_continues_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    bags = planted(6, seed=0)

    def trainer() -> Trainer:
        model = make(name, d_in=16, classes=2)
        return Trainer(model, bags, bags, anchor=AnchorRegularizer(model), config=QUICK, seed=5, device="cuda")

    whole, first, second = trainer(), trainer(), trainer()
    for _ in range(3):
        whole.run_epoch()
    first.run_epoch()
    checkpoint.save(tmp_path, {"trainer": first.state_dict()}, digest="d")
    saved = checkpoint.load(tmp_path, digest="d")
    assert saved is not None
    second.load_state_dict(saved["trainer"])
    for _ in range(2):
        second.run_epoch()
    expected = whole.model.state_dict()
    for key, value in second.model.state_dict().items():  # some sums of a GPU have no fixed order
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-5)


FOLLOW_UPS = [FollowUp(1.0, True), FollowUp(2.0, False)] * 3


@pytest.mark.parametrize(
    ("task", "labels"),
    [(Regression(), [0.5, 2.0, 1.0, 3.5, 2.5, 0.0]), (SurvivalTask(risk_set=3), FOLLOW_UPS)],
)
def test_outcomes_train_on_a_gpu(task: Task, labels: list[Any]) -> None:
    bags = [Bag(bag.features, label, bag.name) for bag, label in zip(planted(6, seed=0), labels, strict=True)]
    model = make("asmil", d_in=16, classes=1)
    result = fit(model, bags, bags, anchor=AnchorRegularizer(model), config=QUICK, task=task, seed=0, device="cuda")
    assert all(np.isfinite(row["loss"]) for row in result.history)
    assert np.isfinite(result.scale).all()


@pytest.mark.parametrize("name", MODELS)
def test_sources_recipe_trains_on_a_gpu(name: str) -> None:
    bags, model = planted(6, seed=0), make(name, d_in=16, classes=2)
    trainer = source_trainer(name, model, bags, bags, seed=0, device="cuda")
    trainer.run_epoch()
    assert np.isfinite(trainer.history[-1]["loss"])
    assert source_config(name).epochs >= 1
    assert isinstance(trainer.task, Classification)


def test_accumulated_steps_are_those_of_the_cpu() -> None:
    config = FitConfig(epochs=2, learning_rate=1e-3, accumulate=3)
    losses = []
    for device in ("cpu", "cuda"):
        model, bags = make("gated_abmil", d_in=16, classes=2), planted(6, seed=0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        result = fit(model, bags, bags, anchor=AnchorRegularizer(model), config=config, seed=0, device=device)
        losses.append([row["loss"] for row in result.history])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)


def test_float16_features_of_a_store_reach_the_gpu(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float16)
    store.write(
        tmp_path / "a.zarr.zip",
        {"features": features, "coords": np.zeros((200, 2), np.int32)},
        store.stage_attributes("embed", slide_id="a", fingerprint=""),
    )
    read = store.read(tmp_path / "a.zarr.zip").arrays["features"]
    model = make("asmil", d_in=16, classes=2)
    gpu, cpu = (predict(model, read, device=device).score for device in ("cuda", "cpu"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-3, atol=1e-6)
