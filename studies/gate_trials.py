"""Does the timing gate decide rightly here? A against itself, and against itself with its decode slowed, over and over.

Every trial is a whole `scaling ab` of two commits of a clone of this checkout, in the tiny model's short cell.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling.errors import UsageError
from scaling.files import appearing
from scaling.gate.sessions import THREADS
from scaling.results import SCHEMA_VERSION

SLOWED = """

def _slower(decode: Any, share: float) -> Any:
    import functools
    import time

    @functools.wraps(decode)
    def slowed(self: Any) -> Any:
        began = time.perf_counter()
        done = decode(self)
        until = began + (1 + share) * (time.perf_counter() - began)
        while time.perf_counter() < until:
            pass
        return done

    return slowed


Batch.decode = _slower(Batch.decode, {share})
"""
"""At the end of `scaling/engines/batch.py`, it makes every decode step take so much longer."""

MEANING = {0: "fine", 1: "regression", 2: "error", 3: "undecided"}


def clone(folder: Path, slowdowns: Sequence[float]) -> dict[float, str]:
    """Clones the checkout around this file, and commits each slowdown on a branch of its own: their refs.

    Raises `UsageError` where this file is in no checkout.
    """
    top = Path(__file__).resolve().parents[1]
    if git(top, "rev-parse", "--is-inside-work-tree", check=False).returncode:
        raise UsageError("the trials slow a clone of the checkout; run them from one")
    git(top, "clone", "--quiet", str(top), str(folder))
    refs = {}
    for slowdown in dict.fromkeys(slowdowns):
        refs[slowdown] = f"slower-by-{slowdown:g}"
        git(folder, "checkout", "--quiet", "--detach", git(top, "rev-parse", "HEAD").stdout.strip())
        git(folder, "checkout", "--quiet", "-b", refs[slowdown])
        if slowdown:
            batch = folder / "scaling/engines/batch.py"
            imported = batch.read_text().replace("\nfrom dataclasses", "\nfrom typing import Any\nfrom dataclasses", 1)
            batch.write_text(imported + SLOWED.format(share=slowdown))
            identity = ["-c", "user.name=trials", "-c", "user.email=trials@localhost"]
            git(folder, *identity, "commit", "--quiet", "--all", "--message", f"Slow decode by {slowdown:.0%}")
    git(folder, "checkout", "--quiet", "--detach", refs[slowdowns[0]])
    return refs


def git(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=check, capture_output=True, text=True)


def trial(checkout: Path, a: str, b: str, *, floor: str, budget: str, seed: int) -> dict[str, Any]:
    """One `scaling ab` from the command line: its JSON, or how it failed."""
    command = ["ab", "--a", a, "--b", b, "--floor", floor, "--budget", budget, "--seed", str(seed), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "scaling", *command], check=False, capture_output=True, text=True, cwd=checkout
    )
    told = json.loads(done.stdout) if done.stdout else {"error": done.stderr.strip(), "exit_code": done.returncode}
    return {**told, "exit_code": done.returncode}


def to_markdown(record: dict[str, Any]) -> str:
    """Counts of exit codes a slowdown, then the transcript, a line a series, or a trial that came to none."""
    trials = record["trials"]
    lines = [
        f"Floor {record['floor']}, at most {record['budget']} a trial. {record['machine']}.",
        "",
        "| slowdown put in | trials | exit 0, fine | exit 1, regression | exit 3, undecided | other | median pairs "
        "| minutes |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for slowdown in sorted({t["slowdown"] for t in trials}):
        found = [t for t in trials if t["slowdown"] == slowdown]
        codes = [t["exit_code"] for t in found]
        counts = [codes.count(code) for code in (0, 1, 3)]
        pairs = [s["reading"]["pairs"] for t in found for s in t.get("series", ())]
        minutes = [t["elapsed_seconds"] / 60 for t in found if "elapsed_seconds" in t]
        cells = (
            f"{slowdown:.0%}",
            *map(str, (len(found), *counts, len(found) - sum(counts))),
            f"{statistics.median(pairs):g}" if pairs else "",
            f"{statistics.mean(minutes):.1f}" if minutes else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| trial | slowdown put in | exit | seen | 95 % interval | pairs | noise of a pair |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for number, t in enumerate(trials, start=1):
        came_to = f"{t['exit_code']}, {MEANING.get(t['exit_code'], 'error')}"
        if not t.get("series"):
            why = " ".join(t.get("sentences") or [t.get("error") or "it said nothing"]).replace("|", "\\|")
            lines.append(f"| {number} | {t['slowdown']:.0%} | {came_to} | {' '.join(why.split())} | | | |")
        for series in t.get("series", ()):
            found = series["reading"]
            span = "none" if found["low"] is None else f"{found['low']:.3f} to {found['high']:.3f}"
            noise = "" if found["noise"] is None else f"{100 * found['noise']:.1f} %"
            cells = (
                f"{number}",
                f"{t['slowdown']:.0%}",
                came_to,
                f"{found['ratio']:.3f}",
                span,
                f"{found['pairs']}",
                noise,
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def save(record: dict[str, Any], out: Path) -> None:
    with appearing(out, replace=True) as pending:
        pending.write_text(json.dumps({"schema_version": SCHEMA_VERSION, **record}, indent=1) + "\n")
    with appearing(out.with_suffix(".md"), replace=True) as pending:
        pending.write_text(to_markdown(record))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slowdowns", default="0:10,0.1:10,0.05:5", help="each with its number of trials")
    parser.add_argument("--floor", default="3%")
    parser.add_argument("--budget", default="8m")
    parser.add_argument("--out", type=Path, default=Path("docs/runs/gate-trials.json"), help="is gone on with")
    options = parser.parse_args(arguments)
    asked = [
        (float(share), int(times)) for share, _, times in (part.partition(":") for part in options.slowdowns.split(","))
    ]
    from scaling.measure.fingerprint import fingerprint

    found = fingerprint()
    hardware, software = found["hardware"], found["software"]
    threads, processors = THREADS["OMP_NUM_THREADS"], hardware["usable_processors"]
    machine = f"{hardware['cpu']}, {threads} of {processors} processors a build, torch {software['packages']['torch']}"
    record: dict[str, Any] = {"floor": options.floor, "budget": options.budget, "machine": machine, "trials": []}
    if options.out.exists():
        before = json.loads(options.out.read_text())
        for name in ("floor", "budget", "machine"):
            if before[name] != record[name]:
                parser.error(
                    f"{options.out} has trials with {name} {before[name]}, not {record[name]}; give another --out"
                )
        record = before
    turns = [share for times in range(max(n for _, n in asked)) for share, n in asked if times < n]  # kinds in turn
    with tempfile.TemporaryDirectory(prefix="gate-trials-") as scratch:
        refs = clone(Path(scratch) / "checkout", [0.0, *turns])
        for number, slowdown in list(enumerate(turns))[len(record["trials"]) :]:
            told = trial(
                Path(scratch) / "checkout",
                refs[0.0],
                refs[slowdown],
                floor=options.floor,
                budget=options.budget,
                seed=number,
            )
            told.pop("counters", None)
            record["trials"].append({"slowdown": slowdown, **told})
            save(record, options.out)
            print(
                f"{number + 1} of {len(turns)}, {slowdown:.0%}: {' '.join(told.get('sentences', [told.get('error')]))}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
