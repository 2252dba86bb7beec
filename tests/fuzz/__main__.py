"""Fuzz every loader of files from outside: `python -m tests.fuzz --minutes 10`.

Each target runs in processes of its own, with limits on memory and on the time of one input. Hypothesis makes inputs
by a strategy; where atheris is installed (the extra `fuzz`), it also changes right files and follows which code that
reaches. An input that breaks a loader is kept in `tests/fuzz/findings`, which tests/test_hostile_input.py reads again.
"""

import argparse
import faulthandler
import hashlib
import importlib
import importlib.util
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

ATHERIS = "atheris"
if ATHERIS in sys.argv:
    import atheris

    def followed() -> AbstractContextManager[None]:
        """Give a context in which the coverage of what is imported is followed."""
        following: AbstractContextManager[None] = atheris.instrument_imports(
            include=["pipeline"], enable_loader_override=False
        )
        return following
else:
    followed = nullcontext

with followed():
    from tests.fuzz.making import Target, ours
    from tests.fuzz.targets import TARGETS

FINDINGS = Path(__file__).parent / "findings"
MOST_MEMORY = 1 << 30
"""Bytes that a target may take beside what its process had before the first input."""
LONGEST_S = 20.0
"""For one input; a stage has `slide.stalled_after_s`."""
ENGINES = ("hypothesis", ATHERIS)
LARGEST_INPUT = 400_000


def run(targets: Mapping[str, Target], asked: argparse.Namespace, *, seconds: float) -> int:
    """Fuzz the targets for about as long as said; give how many of them broke."""
    names = asked.target or list(targets)
    engines = [name for name in ENGINES if importlib.util.find_spec(name)]
    # the coverage of a child process cannot be followed
    jobs = [(name, engine) for name in names for engine in engines if engine != ATHERIS or not targets[name].native]
    if ATHERIS not in engines:
        print("atheris is not installed (pip install '.[fuzz]'): hypothesis alone")
    broken = sum(_run(name, engine, asked, seconds=seconds / len(jobs)) for name, engine in jobs)
    print(f"{len(jobs)} runs, {broken} of them found something{f'; see {asked.findings}' if broken else ''}")
    return broken


def _run(name: str, engine: str, asked: argparse.Namespace, *, seconds: float) -> bool:
    """Fuzz one target in a process of its own; keep the input that broke it, and tell whether one did."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        at_work = Path(scratch) / "input"
        command = [sys.executable, "-m", "tests.fuzz", "--child", engine, "--target", name, "--seed", str(asked.seed)]
        command += ["--seconds", str(seconds), "--at-work", str(at_work), "--targets", asked.targets]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        found = at_work.read_bytes() if at_work.exists() else b""
    tries = re.findall(r"(?m)^inputs (\d+)|^Done (\d+) runs in", done.stdout + done.stderr)
    outcome = "nothing" if done.returncode == 0 else f"exit code {done.returncode}"
    took_s = time.monotonic() - started
    print(f"{name}, {engine}: {max(tries[-1]) if tries else 'some'} inputs in {took_s:.0f} s: {outcome}", flush=True)
    if done.returncode == 0:
        return False
    kept = asked.findings / name.replace(" ", "-") / f"{hashlib.sha256(found).hexdigest()[:16]}.bin"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(found)
    print("\n".join([f"  kept as {kept}", *done.stdout.splitlines()[-25:], *done.stderr.splitlines()[-15:]]))
    return True


class Child:
    """One target in a process of its own: each input is written down before it is read."""

    def __init__(self, target: Target, at_work: Path) -> None:
        self.target, self.inputs = target, 0
        self._at_work = os.open(at_work, os.O_RDWR | os.O_CREAT)

    def warm_up(self) -> None:
        """Read what is right, so that everything is imported, and limit time and memory from there on."""
        for content in self.target.seeds():
            ours(self.target, content)
            self.try_one(content)
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + MOST_MEMORY, used + MOST_MEMORY))

    def try_one(self, content: bytes) -> None:
        """Read one input; raises, or ends the process, if that goes wrong."""
        self.inputs += 1
        os.ftruncate(self._at_work, 0)
        os.pwrite(self._at_work, content, 0)
        faulthandler.dump_traceback_later(LONGEST_S, exit=True)
        if self.target.native:
            self._isolated(content)
        else:
            ours(self.target, content)
        faulthandler.cancel_dump_traceback_later()

    def _isolated(self, content: bytes) -> None:
        """Read as the stages do, in a child that may crash: that costs the slide, and is told from our own errors."""
        from pipeline.isolation import attempt

        outcome = attempt(lambda: ours(self.target, content), stalled_after_s=LONGEST_S / 2)
        if outcome.stalled or outcome.code:
            raise AssertionError(str(outcome) if outcome.stalled else f"it ended with exit code {outcome.code}")

    def by_strategy(self, *, seconds: float, seed: int) -> None:
        """Read what hypothesis makes, until the time is up."""
        import hypothesis

        quiet = hypothesis.settings(
            max_examples=100, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        end, number = time.monotonic() + seconds, seed
        while time.monotonic() < end:
            hypothesis.seed(number)(quiet(hypothesis.given(self.target.strategy)(self.try_one)))()
            number += 1

    def by_coverage(self, *, seconds: float, seed: int) -> None:
        """Read what atheris makes of right files; it ends the process itself."""
        with tempfile.TemporaryDirectory() as corpus:
            for number, content in enumerate(self.target.seeds()):
                Path(corpus, str(number)).write_bytes(content)
            flags = [f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}", f"-max_len={LARGEST_INPUT}"]
            flags += [f"-timeout={LONGEST_S:.0f}", "-rss_limit_mb=0", f"-artifact_prefix={corpus}/", corpus]
            atheris.Setup(["fuzz", *flags], self.try_one)
            atheris.Fuzz()


def _child(target: Target, asked: argparse.Namespace, *, seconds: float) -> None:
    child = Child(target, asked.at_work)
    with followed():
        child.warm_up()
    try:
        (child.by_coverage if asked.child == ATHERIS else child.by_strategy)(seconds=seconds, seed=asked.seed)
    finally:
        print(f"inputs {child.inputs}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS, action="append", help="may be given several times")
    parser.add_argument("--targets", default="tests.fuzz.targets", help="module that has TARGETS")
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="folder that inputs are kept in")
    parser.add_argument("--child", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--at-work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    seconds = asked.minutes * 60 if asked.seconds is None else asked.seconds
    targets = importlib.import_module(asked.targets).TARGETS
    if asked.child:
        _child(targets[asked.target[0]], asked, seconds=seconds)
    else:
        sys.exit(1 if run(targets, asked, seconds=seconds) else 0)


if __name__ == "__main__":
    main()
