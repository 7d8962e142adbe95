"""Options that several commands share: what runs the model."""

from __future__ import annotations

from typing import Annotated

import typer

from scaling.text import RULES

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
AnswerRules = Annotated[
    str | None,
    typer.Option(
        "--answer", help=f"Rules that find the answer, in order: {', '.join(RULES)}. Default: the task's own."
    ),
]
