"""The reference study, end to end from nothing: does training in chunks teach to think on, and what does it cost?

On the walk: trains in both environments, probes the warm start, samples every policy far beyond its budget in both
environments, with a control for positions, measures what thinking costs there, and writes one report. What is done
already in the folder is not done again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scaling.results.store import MANIFEST
from trainer.checkpoint import newest

POLICIES = ("warm", "delethink", "longcot")
CONTROLS = ("warm-long", "delethink-long", "longcot-long")
"""The same from a warm start that has seen every position up to the longest budget."""
RANGES = ("16,high=32", "33,high=80", "81,high=160", "161,high=240")
"""Steps of the walks that are asked; the first is what is trained on."""
SIZES = ("--context-size", "48", "--state-size", "24", "--head", "0")
LONGEST = "1272"
BUDGETS = "48,96,144,192,264,384,528,768,1032"


def steps(folder: Path, seeds: Sequence[int], problems: int, settings: Sequence[str]) -> Iterator[list[str]]:
    """The command lines, in order."""
    training = folder / "training"

    def models(names: Sequence[str]) -> list[str]:
        return [word for name in names for seed in seeds for word in ("--model", str(training / f"{name}-{seed}"))]

    def asked(study: str, name: str, *options: str) -> list[str]:
        out = folder / name
        if (out / MANIFEST).exists():
            return ["scaling", study, "--resume", "--out", str(out)]
        return ["scaling", study, *options, "--out", str(out)]

    tasks = [word for each in RANGES for word in ("--task", f"walk:low={each}")]
    far = [*tasks, "--thinking-tokens", LONGEST, "--budgets", BUDGETS, *SIZES, "--temperature", "1"]
    far += ["--problems", str(problems), "--samples", "4", "--concurrency", "128"]
    yield [
        "studies.training", str(training), "--train-only", "--only", ",".join((*POLICIES, *CONTROLS)),
        "--seeds", ",".join(map(str, seeds)), *(["--set", *settings] if settings else []),
    ]  # fmt: skip
    yield asked(
        "probe", "probe", "--model", str(training / f"warm-{seeds[0]}"), "--task", f"walk:low={RANGES[0]}",
        "--thinking-tokens", "288", "--context-size", "96", "--ablation", "state", "--ablation", "context",
        "--head", "0",
        "--temperature", "1", "--problems", str(2 * problems), "--samples", "16", "--seed", "1000000",
        "--concurrency", "128",
    )  # fmt: skip
    yield asked("test-time", "far", *models(POLICIES), *far)
    yield asked("test-time", "positions", *models(CONTROLS), *far)
    costs = folder / "costs"
    if (costs / MANIFEST).exists():
        yield ["scaling", "run", "--resume", "--out", str(costs)]
    else:
        yield [
            "scaling", "run", "--model", str(newest(training / f"delethink-{seeds[0]}")), *SIZES,
            "--lengths", f"{BUDGETS},{LONGEST}", "--prompt-tokens", "6", "--concurrency", "64", "--traces", "64",
            "--method", "full", "--out", str(costs),
        ]  # fmt: skip
    runs = [str(folder / name) for name in ("far", "positions", "probe", "costs")]
    runs += [str(training / f"{name}-{seed}") for name in POLICIES[1:] for seed in seeds]
    yield ["scaling", "report", *runs, "--out", str(folder / "report")]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m studies.reference", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/reference"), help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--problems", type=int, default=16, help="walks of each range (default: %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="recipe settings, for a small study")
    options = parser.parse_args(arguments)
    begun = time.monotonic()
    for module, *words in steps(options.folder, [*map(int, options.seeds.split(","))], options.problems, options.set):
        print(f"[{time.monotonic() - begun:.0f} s] {module} {' '.join(words)}", file=sys.stderr, flush=True)
        code = subprocess.run([sys.executable, "-m", module, *words], check=False).returncode
        if code:
            return code
    print(f"{options.folder / 'report' / 'index.html'} after {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
