"""Cost of a training step, as ratios within one run: folded against plain, with against without anchor, long bags.

    python benchmarks/training.py [--quick] [--threads 2] [--device cuda]

"Plain" is the same model with a key and a value projection of every patch for every token, as a multi-head attention
layer does it; a step is forward, anchor, backward, update. Times are medians of steps that alternate between the two.
Peak memory is that of a fresh process, less what it held before the model was built. Needs Linux. On a GPU the peak is
that of the memory that torch holds there, and the fold is trained in bfloat16 too.

LIMITS has what is promised on two cores: plain / folded in time and in memory, what the anchor adds, linear growth to
200,000 patches within 8 GB, a fold of 20 slides of 3,000 patches and 20 epochs in a minute without growing by a copy of
its bags. A full run on the CPU that misses one says so and exits with 1.
"""

import argparse
import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asmil.anchor import AnchorConfig, AnchorRegularizer
from asmil.bags import Bag
from asmil.losses import alignment_loss
from asmil.model import ASMIL
from asmil.normalizers import log_nsf, log_softmax
from asmil.options import Precision, default_d_inner
from asmil.training import FitConfig, Trainer

WIDTH, TOKENS, HEADS = 768, 8, 8

LIMITS: dict[str, tuple[float, float]] = {
    "ratio": (5, math.inf),
    "memory_ratio": (2, math.inf),
    "anchor_overhead": (-math.inf, 0.6),
    "growth_over_linear": (0, 1.3),
    "long_bag_mb": (0, 8192),
    "fold_seconds": (0, 60),
    "fold_growth_mb": (-math.inf, 40),  # its bags are 88 MB
}
"""Least and most that is promised of each figure of the result."""

Step = Callable[[], None]


class PlainPool(nn.Module):
    """One query's attention pool with every key and value formed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def logits(self, query: Tensor, rows: Tensor) -> Tensor:
        """Give attention logits [H, N]."""
        keys = self.key(rows).view(len(rows), HEADS, -1).transpose(0, 1)
        queries = self.query(query).view(HEADS, -1, 1)
        logits: Tensor = (keys @ queries).squeeze(-1) / math.sqrt(keys.shape[-1])
        return logits

    def forward(self, query: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give the pooled row [D] and the logits [H, N]."""
        logits = self.logits(query, rows)
        values = self.value(rows).view(len(rows), HEADS, -1).transpose(0, 1)
        pooled = (logits.softmax(-1).unsqueeze(1) @ values).flatten()
        pooled = F.dropout(self.output(pooled), 0.1, self.training)
        return F.layer_norm(pooled, pooled.shape, self.norm.weight, self.norm.bias, 1e-6), logits


class PlainASMIL(nn.Module):
    """ASMIL written plainly."""

    def __init__(self) -> None:
        super().__init__()
        width = default_d_inner(WIDTH)
        self.project = nn.Linear(WIDTH, width, bias=False)
        self.tokens = nn.Parameter(0.02 * torch.randn(TOKENS, width))
        self.bag_token = nn.Parameter(0.02 * torch.randn(width))
        self.pools = nn.ModuleList(PlainPool(width) for _ in range(TOKENS))
        self.bag_pool = PlainPool(width)
        self.classify = nn.Linear(width, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give class logits [C] and attention logits [K, H, N]."""
        rows = torch.relu(self.project(features))
        found = [pool(token, rows) for pool, token in zip(self.pools, self.tokens, strict=True)]
        bag, _ = self.bag_pool(self.bag_token, torch.stack([row for row, _ in found]))
        logits: Tensor = self.classify(bag)
        return logits, torch.stack([attention for _, attention in found])

    def attention_logits(self, features: Tensor) -> Tensor:
        """Give the attention logits [K, H, N] alone."""
        rows = torch.relu(self.project(features))
        pools = cast("list[PlainPool]", list(self.pools))
        return torch.stack([pool.logits(token, rows) for pool, token in zip(pools, self.tokens, strict=True)])


def plain_step(patches: int, *, device: str = "cpu") -> Step:
    """Give a function that takes one step of the plain model with a plain anchor."""
    torch.manual_seed(0)
    model, features, label = PlainASMIL().to(device), torch.randn(patches, WIDTH).to(device), torch.tensor(1).to(device)
    anchor = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        logits, attention = model(features)
        with torch.no_grad():
            target = log_nsf(anchor.attention_logits(features))
        loss = F.cross_entropy(logits, label) + 0.1 * alignment_loss(target, log_softmax(attention))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(anchor.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.001)

    return step


def folded_step(patches: int, *, anchored: bool = True, device: str = "cpu") -> Step:
    """Give a function that takes one step as `asmil.fit` does, on a bag that is on the device."""
    torch.manual_seed(0)
    model = ASMIL(WIDTH, 2, tokens=TOKENS, heads=HEADS)
    bags = [Bag(torch.randn(patches, WIDTH).to(device), 1, "bag")]
    anchor = AnchorRegularizer(model, AnchorConfig()) if anchored else None
    trainer = Trainer(model, bags, bags, anchor=anchor, config=FitConfig(epochs=10**6), seed=0, device=device)
    trainer.epoch = 1

    def step() -> None:
        trainer._step([0], 0)

    return step


STEPS: dict[str, Callable[..., Step]] = {
    "plain": plain_step,
    "folded": folded_step,
    "unanchored": partial(folded_step, anchored=False),
}


def now() -> float:
    """Give a time in seconds: of this process with one thread, which another load on the machine hardly disturbs."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def median_seconds(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Time steps in turn, so that another load on the machine meets all of them; the first of each is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            start = now()
            step()
            if repeat:
                taken[name].append(now() - start)
    return {name: sorted(values)[len(values) // 2] for name, values in taken.items()}


def peak_mb(name: str, patches: int, *, device: str) -> float:
    """Give the peak memory of two steps in a process of their own, in MB."""
    command = [sys.executable, __file__, "--peak", name, str(patches), "--device", device]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak_so_far_mb() -> float:
    """Give the largest memory this process has held, in MB; unlike ru_maxrss, not that of the process it comes from."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def print_peak(name: str, patches: int, *, device: str) -> None:
    """Print the memory that two steps add to this process at their peak, in MB; with a bag of one patch for warm-up."""
    torch.set_num_threads(1)
    folded_step(1, device=device)()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    before = peak_so_far_mb()
    step = STEPS[name](patches, device=device)
    step()
    step()
    print(torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else peak_so_far_mb() - before)


def fold_alone(patches: int, epochs: int, *, threads: int, device: str, precision: Precision = "fp32") -> list[float]:
    """Do as `fold_seconds` in a process of its own: one that has held more before would hide what the fold adds."""
    of_fold = ["--fold", str(patches), str(epochs), precision, "--threads", str(threads), "--device", device]
    ran = subprocess.run([sys.executable, __file__, *of_fold], check=True, stdout=subprocess.PIPE, text=True)
    return [float(value) for value in ran.stdout.split()]


def fold_seconds(patches: int, epochs: int, *, device: str, precision: Precision) -> tuple[float, float]:
    """Train on 16 bags and judge 4 by epoch; give the seconds, and the MB that the last half of the epochs added."""
    torch.manual_seed(0)
    bags = [Bag(torch.randn(patches, WIDTH).half().numpy(), number % 2, str(number)) for number in range(20)]
    model = ASMIL(WIDTH, 2, tokens=TOKENS, heads=HEADS)
    config = FitConfig(epochs=epochs, precision=precision)
    anchor = AnchorRegularizer(model)
    trainer = Trainer(model, bags[:16], bags[16:], anchor=anchor, config=config, seed=0, device=device)
    start, peaks = now(), []
    while not trainer.finished:
        trainer.run_epoch()
        peaks.append(peak_so_far_mb())
    return now() - start, peaks[-1] - peaks[len(peaks) // 2]


def missed(result: Mapping[str, float]) -> list[str]:
    """Say which limits a result does not keep."""
    return [
        f"{name} is {result[name]}, promised is {least} to {most}"
        for name, (least, most) in LIMITS.items()
        if not least <= result[name] <= most
    ]


def main() -> None:
    """Print a line a claim, and one JSON line; exit with 1 if a full run on the CPU misses a limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter bags, fewer steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "PATCHES"), help=argparse.SUPPRESS)
    parser.add_argument("--fold", nargs=3, metavar=("PATCHES", "EPOCHS", "PRECISION"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        return print_peak(args.peak[0], int(args.peak[1]), device=args.device)
    torch.set_num_threads(args.threads)
    if args.fold:
        patches, epochs, precision = args.fold
        print(*fold_seconds(int(patches), int(epochs), device=args.device, precision=precision))
        return None
    device = args.device
    patches, repeats = (2_000, 3) if args.quick else (10_000, 7)
    times = median_seconds({name: build(patches, device=device) for name, build in STEPS.items()}, repeats)
    peaks = {name: peak_mb(name, patches, device=device) for name in ("plain", "folded")}
    speed, memory = times["plain"] / times["folded"], peaks["plain"] / peaks["folded"]
    overhead = times["folded"] / times["unanchored"] - 1
    print(f"step at {patches} patches: plain {times['plain']:.4f} s, folded {times['folded']:.4f} s, ratio {speed:.1f}")
    print(f"peak: plain {peaks['plain']:.0f} MB, folded {peaks['folded']:.0f} MB, ratio {memory:.1f}")
    print(f"the anchor adds {100 * overhead:.0f} % to a step")
    short, long = (5_000, 20_000) if args.quick else (50_000, 200_000)
    bags = median_seconds({str(count): folded_step(count, device=device) for count in (short, long)}, 2)
    growth = bags[str(long)] / bags[str(short)] / (long / short)
    long_mb = peak_mb("folded", long, device=device)
    print(f"{long} patches: {bags[str(long)]:.3f} s, {growth:.2f} of linear from {short}, peak {long_mb:.0f} MB")
    fold = (500, 4) if args.quick else (3_000, 20)
    seconds, grown = fold_alone(*fold, threads=args.threads, device=device)
    print(f"fold of 20 slides: {seconds:.1f} s; the last half of its epochs added {grown:.1f} MB")
    if device != "cpu":
        halved, _ = fold_alone(*fold, threads=args.threads, device=device, precision="bf16")
        print(f"the same in bfloat16 on {torch.cuda.get_device_name()}: {halved:.1f} s")
    figures = {
        "ratio": round(speed, 2),
        "memory_ratio": round(memory, 2),
        "anchor_overhead": round(overhead, 3),
        "growth_over_linear": round(growth, 3),
        "long_bag_mb": round(long_mb),
        "fold_seconds": round(seconds, 1),
        "fold_growth_mb": round(grown, 1),
    }
    print(json.dumps({"benchmark": "training", **figures}))
    if not args.quick and device == "cpu" and (found := missed(figures)):
        raise SystemExit("\n".join(found))
    return None


if __name__ == "__main__":
    main()
