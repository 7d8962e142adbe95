"""Options that several commands share: what runs the model, and how it may think."""

from __future__ import annotations

from typing import Annotated

import typer

EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help="What runs the model: local; vllm, in this process too; or openai, the server at --base-url."
    ),
]
Dtype = Annotated[str | None, typer.Option(help="float32 or bfloat16. Default: bfloat16 on a GPU, float32 on a CPU.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Most traces in flight.")]
TensorParallel = Annotated[int, typer.Option(min=1, help="GPUs that share each layer, with --engine vllm.")]
BaseUrl = Annotated[str | None, typer.Option(help="The server of --engine openai, e.g. http://127.0.0.1:8000/v1.")]
ServedModel = Annotated[
    str | None, typer.Option(help="The server's name for the model. Default: the one that it serves.")
]
Deadline = Annotated[float, typer.Option(min=0.0, help="Seconds of one request to the server, tries included.")]
KeyVariable = Annotated[str, typer.Option(help="Environment variable of the server's API key.")]

Modes = Annotated[
    list[str] | None,
    typer.Option("--mode", help="Thinking environment: longcot, delethink. Repeatable; both by default."),
]
ContextSize = Annotated[str, typer.Option(help="Delethink's C, new tokens of the first chunk.")]
StateSize = Annotated[str | None, typer.Option(help="Delethink's m, last tokens kept. Default C/2.")]
Head = Annotated[int, typer.Option(help="First tokens of chunk 1 that all chunks keep.")]
Iterations = Annotated[int | None, typer.Option(help="Delethink's I, most chunks. Default 3.")]
ThinkingTokens = Annotated[
    str | None, typer.Option(help="Thinking budget of a trace instead of --iterations, e.g. 2k.")
]
