"""How close the embed stage comes to the bare encoder, what a bag costs on disk, and what memory a slide takes.

    python benchmarks/embedding.py [--quick]
    python benchmarks/embedding.py --device cuda --encoder timm:vit_large_patch16_224 --threads 8

Rates are compared within one run, alternating, on one thread for the encoder and one that reads; the medians count.
Memory is the peak of a process of its own for each size of slide. What a device idles between two slides is measured
with one CPU in place of a GPU, which two jobs claim as they would a GPU. With `--device cuda`, the network's stage and
what the GPU idles are measured, and nothing else; the network is untrained.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pipeline import encoders, store  # noqa: E402
from pipeline.chunks import Chunks  # noqa: E402
from pipeline.encoding import encode  # noqa: E402
from pipeline.slide import open_slide  # noqa: E402
from tests.slides import tissue_like, write_svs  # noqa: E402

NETWORK = "timm:mobilenetv4_conv_small"
SMALL_PX, WIDTH = 32, 768
"""Patches and features of the measurement of memory: many patches from a slide of moderate size."""
GOALS = {"network": 0.90, "texture": 0.75}


def grid(side_px: int, patch_px: int) -> NDArray[np.int32]:
    """Give the corners of all patches of a square slide, shape (N, 2)."""
    edge = np.arange(0, side_px - patch_px + 1, patch_px)
    y, x = np.meshgrid(edge, edge, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1).astype(np.int32)


def rate_of(work: Callable[[], Any], patches: int) -> float:
    """Give patches per second."""
    start = time.perf_counter()
    work()
    return patches / (time.perf_counter() - start)


@dataclass
class Rates:
    """Patches per second of the clock, and of the processor time of the thread that encodes."""

    wall: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)

    def add(self, work: Callable[[], Any], patches: int) -> None:
        """Measure once."""
        start = time.thread_time()
        self.wall.append(rate_of(work, patches))
        self.busy.append(patches / (time.thread_time() - start))

    def medians(self) -> tuple[float, float]:
        """Give the median of both."""
        return statistics.median(self.wall), statistics.median(self.busy)


def compare(
    name: str,
    bare: Callable[[NDArray[np.uint8]], Callable[[], Any]],
    *,
    patches: int,
    rounds: int,
    device: str = "cpu",
    threads: int = 1,
) -> tuple[float, float]:
    """Give the stage's patches/s over the bare encoder's: by the clock, and by the encoding thread's own time.

    The second says what the stage costs the thread that encodes, also where other programs take the processor.
    """
    model = encoders.load(name, weights="random", threads=1, device=device)
    patch_px, batch = model.patch_px, int(getattr(model, "batch_size", 32))
    on_cpu = device == "cpu"
    side_px = int(np.ceil(np.sqrt(patches))) * patch_px
    with tempfile.TemporaryDirectory() as folder:
        path = write_svs(Path(folder) / "a.svs", tissue_like(side_px, side_px), factors=())
        coords = grid(side_px, patch_px)
        with open_slide(path) as slide:
            pieces = [piece for _, piece in slide.patches(coords[:batch], patch_px=patch_px, mpp=0.5, threads=1)]
            bare_call = bare(np.concatenate(pieces)[:batch])
            ours, alone = Rates(), Rates()
            batches = max(1, len(coords) // batch)

            def stage() -> None:
                chunks = Chunks(Path(folder) / "a.zarr.zip", digest="d", rows=len(coords))
                encode(
                    slide, coords, chunks=chunks, load=lambda: model, patch_px=patch_px, mpp=0.5, threads=threads,
                    on_cpu=on_cpu,
                )  # fmt: skip
                chunks.remove()

            def repeat() -> None:
                for _ in range(batches):
                    found = bare_call()
                if not on_cpu:
                    found.cpu()  # waits for the device

            for _ in range(rounds):
                ours.add(stage, len(coords))
                alone.add(repeat, batches * batch)
    (wall, busy), (bare_wall, bare_busy) = ours.medians(), alone.medians()
    print(f"{name}: stage {wall:.0f} patches/s, bare {bare_wall:.0f}, ratio {wall / bare_wall:.2f}, batch {batch}")
    print(f"{name}: per second of the encoding thread {busy:.0f}, bare {bare_busy:.0f}, ratio {busy / bare_busy:.2f}")
    return wall / bare_wall, busy / bare_busy


def bare_network(patches: NDArray[np.uint8], *, name: str = NETWORK, device: str = "cpu") -> Callable[[], Any]:
    """Give the network's forward alone, on a normalised batch that is ready in the device's memory."""
    import torch

    torch.set_num_threads(1)
    network = encoders.build(encoders.spec(name), None).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.from_numpy(patches).to(device).permute(0, 3, 1, 2).float().div_(255)

    def forward() -> Any:
        with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu"):
            return network(image)

    return forward


def bare_texture(patches: NDArray[np.uint8]) -> Callable[[], Any]:
    """Give `texture` on patches that are in memory."""
    encoder = encoders.load("texture")
    return lambda: encoder(patches)


def storage(rows: int) -> dict[str, float]:
    """Compare a bag with an HDF5 file that grew a row at a time: bytes, and time to read it whole."""
    features = np.random.default_rng(0).normal(size=(rows, WIDTH)).astype(np.float32)
    coords = np.zeros((rows, 2), np.int32)
    with tempfile.TemporaryDirectory() as folder:
        bag, peer = Path(folder) / "a.zarr.zip", Path(folder) / "a.h5"
        store.write(
            bag,
            {"features": features.astype(np.float16), "coords": coords},
            store.stage_attributes("embed", slide_id="a", fingerprint=""),
        )
        with h5py.File(peer, "w") as file:
            for name, values in (("features", features), ("coords", coords)):
                grown = file.create_dataset(
                    name, shape=(0, values.shape[1]), maxshape=(None, values.shape[1]), chunks=(1, values.shape[1]),
                    dtype=values.dtype,
                )  # fmt: skip
                grown.resize(rows, axis=0)
                grown[:] = values

        def read_peer() -> None:
            with h5py.File(peer, "r") as file:
                file["features"][...], file["coords"][...]

        ours = statistics.median(rows / rate_of(lambda: store.read(bag), rows) for _ in range(5))
        theirs = statistics.median(rows / rate_of(read_peer, rows) for _ in range(5))
        size = bag.stat().st_size / peer.stat().st_size
    print(f"bag of {rows}: {size:.2f} of the bytes, {ours * 1e3:.0f} ms against {theirs * 1e3:.0f} ms to read")
    return {"bytes_ratio": round(size, 3), "read_ratio": round(ours / theirs, 3)}


class Wide:
    """An encoder that costs nothing and gives many features."""

    spec = encoders.EncoderSpec(
        name="wide", mpp=0.5, patch_px=SMALL_PX, dim=WIDTH, mean=(0, 0, 0), std=(1, 1, 1), licence="MIT",
        source="benchmarks", needs_weights=False,
    )  # fmt: skip
    mpp: float | None = 0.5
    patch_px: int = SMALL_PX
    dim: int = WIDTH

    def __call__(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Repeat the first pixels."""
        return patches.reshape(len(patches), -1)[:, :WIDTH].astype(np.float32)


def peak_megabytes(slide: Path, patches: int) -> float:
    """Give the peak memory of a process that embeds that many patches of a slide."""
    command = [sys.executable, __file__, "--child", str(slide), "--patches", str(patches)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(said.splitlines()[-1])


def child(slide_path: Path, patches: int) -> None:
    """Embed and print this process's peak memory, MB."""
    from pipeline.embed import _features_of

    with tempfile.TemporaryDirectory() as folder, open_slide(slide_path) as slide:
        coords = grid(min(slide.width, slide.height), SMALL_PX)[:patches]
        bag = Path(folder) / "a.zarr.zip"
        chunks = Chunks(bag, digest="d", rows=len(coords))
        encode(slide, coords, chunks=chunks, load=Wide, patch_px=SMALL_PX, mpp=0.5, threads=1)
        arrays = _features_of(chunks, coords, max_unreadable=0.01)
        store.write(bag, arrays, store.stage_attributes("embed", slide_id="a", fingerprint=""))
    # not getrusage: its peak starts with that of the process that started this one
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def memory(largest: int) -> float:
    """Give the peak memory of a large slide over that of one with 2,000 patches, of the same file."""
    side_px = int(np.ceil(np.sqrt(largest))) * SMALL_PX
    with tempfile.TemporaryDirectory() as folder:
        slide = write_svs(Path(folder) / "a.svs", tissue_like(side_px, side_px), factors=())
        small, large = (peak_megabytes(slide, patches) for patches in (2000, largest))
    print(f"peak memory: {small:.0f} MB for 2000 patches, {large:.0f} MB for {largest}")
    return large / small


def watched(model: Any) -> Any:
    """Let an encoder print when it is given its first batch, and when each is done."""
    submit, begun = model.submit, False

    def submit_and_tell(patches: NDArray[np.uint8]) -> Callable[[], NDArray[np.float32]]:
        nonlocal begun
        if not begun:
            print("first batch", time.time(), flush=True)
            begun = True
        features = submit(patches)
        print("batch done", time.time(), flush=True)
        return features  # type: ignore[no-any-return]

    model.submit = submit_and_tell
    return model


def slide_job(slide_path: Path, name: str, patches: int, device: str) -> None:
    """Embed as a job on a GPU does, and print when what happened."""
    from pipeline.device import claim

    def take() -> str:
        claim(["0"], folder=slide_path.parent / "slots")
        return device

    with tempfile.TemporaryDirectory() as folder, open_slide(slide_path) as slide:
        coords = grid(slide.width, 224)[:patches]
        chunks = Chunks(Path(folder) / "a.zarr.zip", digest="d", rows=len(coords))
        encode(
            slide, coords, chunks=chunks, load=lambda: watched(encoders.load(name, weights="random", device=take)),
            patch_px=224, mpp=0.5, threads=1, on_cpu=False,
        )  # fmt: skip


def between_slides(name: str, patches: int, *, device: str = "cpu") -> dict[str, float]:
    """Give seconds from a job's start to its first batch, and between two slides: one after the other, and queued."""
    import threading

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        slide = write_svs(Path(folder) / "a.svs", tissue_like(3136, 3136), factors=())
        command = [sys.executable, __file__, "--slide-job", str(slide), "--encoder", name, "--patches", str(patches)]
        command += ["--device", device]

        def run(times: list[tuple[str, float]]) -> None:
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            times += [(line.rpartition(" ")[0], float(line.rpartition(" ")[2])) for line in said.splitlines()]

        for way in ("alone", "queued"):
            jobs: list[list[tuple[str, float]]] = [[], []]
            threads = [threading.Thread(target=run, args=(times,)) for times in jobs]
            start = time.time()
            for thread in threads:
                thread.start()
                if way == "alone":
                    thread.join()
                else:
                    time.sleep(1)
            for thread in threads:
                thread.join()
            first, second = sorted(jobs, key=lambda times: times[0][1])
            found[f"idle_{way}_s"] = round(second[0][1] - first[-1][1], 2)
            if way == "alone":
                found["start_s"] = round(first[0][1] - start, 2)
    print(f"{name}: {found}")
    return found


def on_gpu(name: str, device: str, *, threads: int, patches: int) -> dict[str, Any]:
    """Compare the stage on a GPU with the bare network there, and give what the GPU idles between two slides."""
    import torch

    bare = partial(bare_network, name=name, device=device)
    ratio, _ = compare(name, bare, patches=patches, rounds=3, device=device, threads=threads)
    idle = between_slides(name, 192, device=device)
    return {"benchmark": "embedding", "ratio": round(ratio, 3), "device": torch.cuda.get_device_name(device), **idle}


def main() -> None:
    """Print what was measured, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", type=Path)
    parser.add_argument("--slide-job", type=Path)
    parser.add_argument("--encoder", default=NETWORK)
    parser.add_argument("--patches", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=8, help="that read, beside a GPU")
    args = parser.parse_args()
    if args.slide_job:
        slide_job(args.slide_job, args.encoder, args.patches, args.device)
        return
    if args.child:
        child(args.child, args.patches)
        return
    if args.device != "cpu":
        print(
            json.dumps(on_gpu(args.encoder, args.device, threads=args.threads, patches=2048 if args.quick else 16384))
        )
        return
    patches, rounds, largest = (256, 2, 12000) if args.quick else (1024, 3, 50000)
    load = os.getloadavg()[0]
    network = compare(NETWORK, bare_network, patches=patches, rounds=rounds)
    texture = compare("texture", bare_texture, patches=patches, rounds=rounds)
    result = {
        "benchmark": "embedding",
        "ratio": round(network[0], 3),
        "texture_ratio": round(texture[0], 3),
        "thread_ratio": round(network[1], 3),
        "texture_thread_ratio": round(texture[1], 3),
        "goals": GOALS,
        "memory_ratio": round(memory(largest), 3),
        **storage(10000),
        **between_slides(NETWORK, 96 if args.quick else 192),
        "load": round(load, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
