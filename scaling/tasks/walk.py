"""The keyed permutation walk: a task that a model of 100k parameters learns in minutes, whose thoughts may be long.

A query `A1fq:` gives a key, a number of steps in hexadecimal and a state; the answer is the state after so many steps
along the key's cycle. A thought writes every step as a countdown and a state, then the answer: `1fq,1er,…,00z#z`.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from scaling.errors import UsageError
from scaling.files import appearing
from scaling.tasks.base import Problem, Verdict
from scaling.tasks.parameters import Parameters

STATES = "pqrstuvwxyz"
KEYS = "ABCDEFGH"
LONGEST = 255
"""Most steps that two hexadecimal digits can count."""

INSTANCES = 10_000
"""Problems that a walk has unless it is told."""


def _cycle(key: str) -> dict[str, str]:
    """The key's successor of each state: one cycle through all of them."""
    order = list(STATES)
    random.Random(f"walk/{key}").shuffle(order)
    return dict(zip(order, order[1:] + order[:1], strict=True))


SUCCESSOR = {key: _cycle(key) for key in KEYS}


class WalkTokenizer:
    """One token a character, with `<bos>` and `<eos>`; there is no padding, so none can be sampled."""

    tokens = ("<bos>", "<eos>", *"0123456789abcdef", *STATES, *KEYS, ":", ",", "#")
    bos, eos = 0, 1
    vocabulary = len(tokens)
    _ids: ClassVar = {token: id for id, token in enumerate(tokens)}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, nothing added; raises `UsageError` for a character that is not in the alphabet."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise UsageError(f"character {error} is none of the walk's: {''.join(self.tokens[2:])}") from None

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.tokens[id] for id in ids)

    def save(self, directory: Path | str) -> None:
        """Writes the files from which `transformers.AutoTokenizer` makes this tokenizer; it puts `<bos>` first."""
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

        bos, eos = self.tokens[:2]
        tokenizer = Tokenizer(models.WordLevel(dict(self._ids), unk_token=eos))
        tokenizer.add_special_tokens([AddedToken(bos, special=True), AddedToken(eos, special=True)])
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, self.bos)]
        )
        tokenizer.decoder = decoders.Fuse()
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in {
            "tokenizer.json": tokenizer.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
        }.items():
            with appearing(directory / name, replace=True) as pending:
                pending.write_text(text)


TOKENIZER = WalkTokenizer()

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": WalkTokenizer.vocabulary,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": WalkTokenizer.bos,
    "eos_token_id": WalkTokenizer.eos,
}
"""The Hugging Face config of a model that fits the task: about 100k parameters."""


class Walk:
    """Walks of `low` to `high` steps. Problem i depends on the seed, the range and i alone; there are `instances`."""

    name = "walk"
    rules = ("after-hash",)
    tokenizer = TOKENIZER

    def __init__(self, instances: int, seed: int, low: int, high: int) -> None:
        if not 0 <= low <= high <= LONGEST:
            raise UsageError(f"walks of {low} to {high} steps; expected 0 <= low <= high <= {LONGEST}, e.g. 16 and 32")
        if instances < 1:
            raise UsageError(f"{instances} instances; give at least 1")
        self.instances, self.seed, self.low, self.high = instances, seed, low, high

    def parameters(self) -> dict[str, Any]:
        return {"task": self.name, "instances": self.instances, "seed": self.seed, "low": self.low, "high": self.high}

    def problems(self, count: int) -> list[Problem]:
        if count > self.instances:
            raise UsageError(f"{count} problems asked of a walk with {self.instances} instances")
        return [self._problem(index) for index in range(count)]

    def query(self, problem: Problem) -> list[int]:
        """The token ids that the model thinks after."""
        return [TOKENIZER.bos, *TOKENIZER.encode(problem.question)]

    def reward(self, problem: Problem, response_ids: Sequence[int]) -> float:
        """1 if the trace, all its chunks' response tokens joined, ends in `#answer<eos>` with exactly one `#`.

        Of a trace that ended itself, `verify` says the same by what the task's rule finds in its text.
        """
        text = TOKENIZER.decode([id for id in response_ids if id != TOKENIZER.bos])
        return float(text.endswith(f"#{problem.answer}{TOKENIZER.tokens[TOKENIZER.eos]}") and text.count("#") == 1)

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Accepts the answer alone, or a thought that ends in it after its only `#`."""
        before, _, final = (answer or "").rpartition("#")
        return Verdict(float(final == problem.answer and "#" not in before))

    def score(self, problem: Problem, answer: str | None) -> float:
        return self.verify(problem, answer).score

    def close(self) -> None:
        pass

    def _problem(self, index: int) -> Problem:
        chance = random.Random(f"walk/{self.seed}/{self.low}/{self.high}/{index}")
        key, n, start = chance.choice(KEYS), chance.randint(self.low, self.high), chance.choice(STATES)
        answer = start
        for _ in range(n):
            answer = SUCCESSOR[key][answer]
        meta = {"difficulty": n, "n": n, "key": key, "s0": start}
        id = f"{self.name}-{self.low}-{self.high}-{self.seed}-{index}"
        return Problem(id, question(key, n, start), answer, meta)


def make(parameters: Parameters, seed: int) -> Walk:
    """`low` and `high`: fewest and most steps."""
    low, high = (parameters.number(key, steps, 0, LONGEST) for key, steps in (("low", 16), ("high", 32)))
    return Walk(INSTANCES, seed, low, high)


def question(key: str, n: int, start: str) -> str:
    return f"{key}{n:02x}{start}:"


def thought(key: str, n: int, start: str, chance: random.Random | None = None, slips: float = 0.0) -> str:
    """What a solver writes, who at a share `slips` of the steps goes to any state at all and walks on from there."""
    state, steps = start, [f"{n:02x}{start}"]
    for left in reversed(range(n)):
        slipped = chance is not None and chance.random() < slips
        state = chance.choice(STATES) if chance is not None and slipped else SUCCESSOR[key][state]
        steps.append(f"{left:02x}{state}")
    return f"{','.join(steps)}#{state}"


class Demonstration(NamedTuple):
    """Token ids of a query and a thought, and which of them a model is to learn to write (the query never)."""

    tokens: list[int]
    learned: list[bool]


def demonstrations(
    seed: int,
    context: int,
    max_n: int,
    *,
    slips: float = 0.06,
    windows: float = 0.5,
    states: bool = True,
    start: int = 0,
) -> Iterator[Demonstration]:
    """Endless demonstrations by a solver who slips; the i-th depends on the arguments and i alone, from i = `start`.

    A share `windows` of them are walks of up to 255 steps, cut after `context` tokens of thought, which show counters
    of every size; the others are whole walks of at most `max_n` steps, which show how a thought ends. None continues
    from the middle of a thought, as a Delethink chunk does. Without `states`, only the format is to be learned:
    everything but the states and the answer.
    """
    for index in itertools.count(start):
        chance = random.Random(f"walk/demonstration/{seed}/{index}")
        n = chance.randint(0, LONGEST if chance.random() < windows else max_n)
        key, first = chance.choice(KEYS), chance.choice(STATES)
        query = [TOKENIZER.bos, *TOKENIZER.encode(question(key, n, first))]
        text = thought(key, n, first, chance, slips)
        written = [*TOKENIZER.encode(text), TOKENIZER.eos][:context]
        learned = [states or TOKENIZER.tokens[id] not in STATES for id in written]
        yield Demonstration(query + written, [False] * len(query) + learned)
