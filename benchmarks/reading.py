"""Patches a second and peak memory: our reader, a loop over OpenSlide, and decoding alone, on the same slide.

    python benchmarks/reading.py [--quick] [--slide FILE]
    python benchmarks/reading.py --write FILE --edge 61440      # only write a slide, for other benchmarks

The slide is an Aperio pyramid (levels 1, 4, 16) of 256 px JPEG tiles, quality 80, 4:2:0, at 0.5 um per pixel: drawn
tissue, repeated in 1024 px blocks. Every contender reads the same patches from the page cache, in turns; the best turn
of each counts, because the others say how busy the machine was. Ratios are of wall time; those of CPU time are given
too, as on a shared machine they vary less.

- `openslide`: `OpenSlide.read_region(...).convert("RGB")` a patch;
- `decode`: simplejpeg decodes the tiles under the patches from memory, each once, and nothing else is done;
- `ours`: `Slide.patches`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import simplejpeg
import tifffile
from numpy.typing import NDArray

from pipeline.slide import Slide, open_slide
from pipeline.synthetic import draw_slide
from pipeline.tiff_tiles import read_grid

TILE_PX, BLOCK_TILES, MPP, PATCH_PX = 256, 4, 0.5, 224
FACTORS = (1, 4, 16)


def write_slide(path: Path, edge_px: int) -> None:
    """Write a square slide, tile by tile: three quarters of it tissue.

    Parameters
    ----------
    edge_px
        Edge; a multiple of 4096, so that all levels have whole tiles.
    """
    block_px = TILE_PX * BLOCK_TILES
    drawn = draw_slide(3, width_px=3 * block_px, height_px=3 * block_px, tumour=True).pixels
    block = drawn[block_px : 2 * block_px, block_px : 2 * block_px]
    glass = np.full_like(block, 243)
    description = f"Aperio Image Library v12.0.15 \r\n{edge_px}x{edge_px} ({TILE_PX}x{TILE_PX})|AppMag = 20|MPP = {MPP}"
    with tifffile.TiffWriter(path) as writer:
        for factor in FACTORS:
            size = (block_px // factor, block_px // factor)
            cells = [
                cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.uint8) for pixels in (glass, block)
            ]
            writer.write(
                _tiles(edge_px // factor, cells),
                shape=(edge_px // factor, edge_px // factor, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                description=description,
                metadata=None,
            )


def _tiles(edge_px: int, cells: list[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Give the JPEG tiles of a level, row by row; `cells` are a block of glass and one of tissue at its scale."""
    cell_px = cells[0].shape[0]
    encoded: dict[tuple[int, ...], bytes] = {}
    for top in range(0, edge_px, TILE_PX):
        for left in range(0, edge_px, TILE_PX):
            rows, columns = (np.arange(start, start + TILE_PX, min(TILE_PX, cell_px)) for start in (top, left))
            blocks = [(int(row), int(column)) for row in rows for column in columns]
            kinds = [
                _is_tissue(row // cell_px * cell_px, column // cell_px * cell_px, cell_px, edge_px)
                for row, column in blocks
            ]
            key = (top % cell_px, left % cell_px, *kinds)
            if key not in encoded:
                part_px = min(TILE_PX, cell_px)
                parts = [
                    cells[kind][row % cell_px :, column % cell_px :][:part_px, :part_px]
                    for kind, (row, column) in zip(kinds, blocks, strict=True)
                ]
                pixels = np.vstack(
                    [np.hstack(parts[start : start + len(columns)]) for start in range(0, len(parts), len(columns))]
                )
                encoded[key] = simplejpeg.encode_jpeg(
                    np.ascontiguousarray(pixels), quality=80, colorspace="RGB", colorsubsampling="420"
                )
            yield encoded[key]


def _is_tissue(top: int, left: int, cell_px: int, edge_px: int) -> bool:
    """Tell whether a block is tissue: an ellipse that leaves a margin of glass."""
    y, x = ((start + cell_px / 2) / edge_px * 2 - 1 for start in (top, left))
    return x * x + y * y < 0.95


def dense_coords(edge_px: int, patch_level0_px: int, limit: int | None = None) -> NDArray[np.int32]:
    """Give a grid of patches, row by row, shape (N, 2); with a limit, of the rows in the middle."""
    starts = np.arange(0, edge_px - patch_level0_px + 1, patch_level0_px)
    rows = starts
    if limit is not None:
        count = max(1, limit // len(starts))
        first = max(0, (len(starts) - count) // 2)
        rows = starts[first : first + count]
    y, x = np.meshgrid(rows, starts, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.int32)


def read_ours(slide: Slide, coords: NDArray[np.int32], *, mpp: float, threads: int) -> int:
    """Read patches with `Slide.patches`; return how many."""
    return sum(len(indices) for indices, _ in slide.patches(coords, patch_px=PATCH_PX, mpp=mpp, threads=threads))


def read_openslide(path: Path, coords: NDArray[np.int32], edge_px: int) -> int:
    """Read patches as most pipelines do."""
    with openslide.OpenSlide(path) as handle:
        for x, y in coords.tolist():
            np.asarray(handle.read_region((x, y), 0, (edge_px, edge_px)).convert("RGB"))
    return len(coords)


def tiles_under(path: Path, slide: Slide, coords: NDArray[np.int32], edge_px: int) -> list[bytes]:
    """Load the JPEG tiles that patches at level 0 lie on, each once."""
    grid = read_grid(path, vendor=slide.vendor, level=0, level_dimensions=slide.level_dimensions)
    needed = np.zeros((grid.rows, grid.columns), np.bool_)
    for x, y in coords.tolist():
        needed[y // TILE_PX : -(-(y + edge_px) // TILE_PX), x // TILE_PX : -(-(x + edge_px) // TILE_PX)] = True
    tiles = np.flatnonzero(needed)
    with path.open("rb") as handle:
        return [os.pread(handle.fileno(), int(grid.counts[tile]), int(grid.offsets[tile])) for tile in tiles]


def decode_only(tiles: list[bytes]) -> int:
    """Decode tiles into one buffer."""
    buffer = np.empty(TILE_PX * TILE_PX * 3, np.uint8)
    for tile in tiles:
        simplejpeg.decode_jpeg(tile, "RGB", strict=True, buffer=buffer)
    return len(tiles)


def decode_on_two(tiles: list[bytes]) -> int:
    """Decode half of the tiles on each of two threads: what a second thread can gain on the machine as it is."""
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(decode_only, (tiles[::2], tiles[1::2])))


def best_times(contenders: dict[str, Callable[[], int]], repeats: int) -> dict[str, tuple[float, float]]:
    """Run the contenders in turns; give the shortest wall and CPU time of each, s."""
    best = dict.fromkeys(contenders, (float("inf"), float("inf")))
    for _ in range(repeats):
        for name, run in contenders.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = min(best[name][0], wall), min(best[name][1], cpu)
    return best


def compare(path: Path, *, mpp: float, patches: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Time all contenders at a resolution; give patches per second of wall and of CPU time, and print them."""
    edge_px = round(PATCH_PX * mpp / MPP)
    with open_slide(path) as slide:
        coords = dense_coords(slide.width, edge_px, patches)
        tiles = tiles_under(path, slide, coords, edge_px)
        times = best_times(
            {
                "openslide": lambda: read_openslide(path, coords, edge_px),
                "decode": lambda: decode_only(tiles),
                "decode, 2 threads": lambda: decode_on_two(tiles),
                "ours": lambda: read_ours(slide, coords, mpp=mpp, threads=1),
                "ours, 2 threads": lambda: read_ours(slide, coords, mpp=mpp, threads=2),
            },
            repeats,
        )
        assert slide.patch_source_name == "direct"
    print(f"{PATCH_PX} px patches at {mpp} um per pixel ({edge_px} px of level 0): {len(coords)}, best of {repeats}")
    rates = {name: (len(coords) / wall, len(coords) / cpu) for name, (wall, cpu) in times.items()}
    for name, (wall, cpu) in rates.items():
        print(
            f"  {name:17} {wall:6.0f} patches/s, {wall / rates['openslide'][0]:5.2f} x OpenSlide;"
            f" {cpu:6.0f} patches/CPU s, {cpu / rates['openslide'][1]:5.2f} x"
        )
    return rates


def ratio(rates: dict[str, tuple[float, float]], one: str, other: str, *, cpu: bool = False) -> float:
    """Give how many times faster one contender is than another."""
    return round(rates[one][cpu] / rates[other][cpu], 2)


def peak_mb() -> float:
    """Give this process's largest resident memory so far, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def full_pass(path: Path) -> None:
    """Read every patch of a slide on 2 threads; print the count, seconds and peak memory as JSON."""
    with open_slide(path) as slide:
        before = peak_mb()
        start = time.perf_counter()
        count = read_ours(slide, dense_coords(slide.width, PATCH_PX), mpp=MPP, threads=2)
    seconds = time.perf_counter() - start
    print(json.dumps({"patches": count, "seconds": seconds, "peak_mb": peak_mb(), "start_mb": before}))


def measure_memory(folder: Path, edges: list[int]) -> dict[int, float]:
    """Read slides of several sizes whole, each in a process of its own; give the peak memory of each, MB."""
    peaks = {}
    for edge_px in edges:
        path = folder / f"{edge_px}.svs"
        if not path.exists():
            write_slide(path, edge_px)
        command = [sys.executable, __file__, "--full-pass", str(path)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        peaks[edge_px] = found["peak_mb"]
        print(
            f"full pass over {edge_px} x {edge_px} px: {found['patches']} patches in {found['seconds']:.1f} s, "
            f"peak {found['peak_mb']:.0f} MB ({found['start_mb']:.0f} MB before the first patch)"
        )
    return peaks


def machine() -> str:
    """Name the processor, and how busy it is."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    return f"{os.cpu_count()} x {model}, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Print a table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small slide, one turn")
    parser.add_argument("--write", type=Path, help="write a slide and stop")
    parser.add_argument("--edge", type=int, default=16384, help="edge of the slide to write, px")
    parser.add_argument("--full-pass", type=Path, help="read a whole slide and stop")
    args = parser.parse_args()
    if args.write:
        write_slide(args.write, args.edge)
        return
    if args.full_pass:
        full_pass(args.full_pass)
        return
    edges = [4096, 8192] if args.quick else [16384, 32768, 61440]
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{edges[0]}.svs"
        write_slide(path, edges[0])
        patches, repeats = (300, 1) if args.quick else (3000, 5)
        native = compare(path, mpp=MPP, patches=patches, repeats=repeats)
        half = compare(path, mpp=2 * MPP, patches=patches // 4, repeats=repeats)
        peaks = measure_memory(Path(folder), edges)
    result = {
        "benchmark": "reading",
        "ratio": ratio(native, "ours", "openslide"),
        "half_scale_ratio": ratio(half, "ours", "openslide"),
        "share_of_decoding": ratio(native, "ours", "decode"),
        "two_threads": ratio(native, "ours, 2 threads", "ours"),
        "two_threads_decoding": ratio(native, "decode, 2 threads", "decode"),
        "cpu_ratio": ratio(native, "ours", "openslide", cpu=True),
        "cpu_half_scale_ratio": ratio(half, "ours", "openslide", cpu=True),
        "cpu_share_of_decoding": ratio(native, "ours", "decode", cpu=True),
        "patches_per_second": round(native["ours"][0]),
        "peak_mb": {str(edge): round(peak) for edge, peak in peaks.items()},
        "machine": machine(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
