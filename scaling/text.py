"""Between words and tokens: chat templates, think tags, answer extraction, and printing model text safely."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from scaling.errors import CheckpointError, UsageError, unknown

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"

HARMONY = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
"""What marks messages in the format of gpt-oss models: a header with the channel, `<|message|>`, text, and an end."""

_FINAL = re.compile(r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_NEXT = re.compile("|".join(map(re.escape, HARMONY)))

DEFAULT_RULES = ("boxed", "answer-tag", "last-number", "last-line")


class Answer(NamedTuple):
    """What an answer rule found in a trace's text; `rule` is its name."""

    text: str
    rule: str


def boxed(text: str) -> str | None:
    r"""The content of the `\boxed{…}` that closes last, braces balanced: of nested ones, the outermost closed one."""
    open_braces: list[int | None] = []  # where a box's content starts, None for a brace that opens no box
    found = None
    for token in re.finditer(r"\\boxed\{|\\[{}]|[{}]", text):
        if token.group() == "}":
            if open_braces and (start := open_braces.pop()) is not None:
                found = (start, token.start())
        elif token.group() in ("{", r"\boxed{"):
            open_braces.append(token.end() if token.group() != "{" else None)
    return text[slice(*found)].strip() if found else None


def answer_tag(text: str) -> str | None:
    """The content of the last closed `<answer>…</answer>`."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if 0 <= start < end else None


def last_number(text: str) -> str | None:
    """The last plain decimal number, thousands separators removed: `-1,234.5` gives `-1234.5`."""
    # A minus sign belongs to the number unless something stands right before it, as in 7-3.
    numbers = deque(re.finditer(r"((?<![\w.)])-)?(\d[\d,]*)(\.\d+)?", text, re.ASCII), maxlen=1)
    if not numbers:
        return None
    sign, digits, fraction = (part or "" for part in numbers[0].groups())
    digits = digits.rstrip(",")
    if re.fullmatch(r"\d{1,3}(,\d{3})+", digits):
        return sign + digits.replace(",", "") + fraction
    head, _, tail = digits.rpartition(",")
    return ("" if head else sign) + tail + fraction


def last_line(text: str) -> str | None:
    """The last line that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), None)


def after_hash(text: str) -> str | None:
    """What follows the only `#`."""
    return text.partition("#")[2].strip() if text.count("#") == 1 else None


def statements(text: str) -> str | None:
    """Every `<fact>` and `<result>` that is one word, as `fact WORD` or `result WORD`, each on a line, in order."""
    found = re.findall(r"<(fact|result)>\s*([\w.,+-]{1,64})\s*</\1>", text)
    return "\n".join(f"{kind} {word}" for kind, word in found) or None


RULES: dict[str, Callable[[str], str | None]] = {
    "boxed": boxed,
    "answer-tag": answer_tag,
    "last-number": last_number,
    "last-line": last_line,
    "after-hash": after_hash,
    "statements": statements,
}
WHOLE_TRACE = ("statements",)
"""Rules that read what is thought, too, of a model that closes its thinking."""


def extract(text: str, rules: Sequence[str] = DEFAULT_RULES) -> Answer | None:
    """The answer by the first of the named `rules` that finds one; raises `UsageError` for an unknown rule."""
    for rule in rules:
        if rule not in RULES:
            raise unknown("answer rule", rule, RULES)
        if found := RULES[rule](text):
            return Answer(found, rule)
    return None


@dataclass(frozen=True, slots=True)
class TextHandling:
    """Everything that decides how a question becomes tokens and tokens become an answer, for the record.

    `template_digest`: sha256 of the model's chat template, None where it has none and the question is encoded as it
    is. `system`: the system prompt given, None for the template's own default. `instruction`: what is added to the
    question. `thinks`: the model closes its thinking with `</think>`, and only what follows that can be an answer.
    `harmony`: it thinks in channels, and only its last message in the channel `final` can be one; a chunk that ends
    amid a message or its header changes nothing, as the chunks' responses are read as one text. Rules of the
    `WHOLE_TRACE` read what is thought, too.
    """

    template_digest: str | None
    system: str | None
    instruction: str | None
    thinks: bool
    rules: tuple[str, ...] = DEFAULT_RULES
    harmony: bool = False

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"rules": list(self.rules), "think_tags": [THINK_OPEN, THINK_CLOSE]}

    def answer(self, text: str) -> Answer | None:
        """The answer in a trace's whole text; None if there is none.

        Nor is there one if it still thinks at its end, unless all its rules are for the `WHOLE_TRACE`.
        """
        if set(self.rules) <= set(WHOLE_TRACE):
            return extract(text, self.rules)
        if self.harmony:
            opened = deque(_FINAL.finditer(text), maxlen=1)
            if not opened:
                return None
            text = _NEXT.split(text[opened[0].end() :], maxsplit=1)[0]
        elif self.thinks:
            _, closed, text = text.rpartition(THINK_CLOSE)
            if not closed:
                return None
        return extract(text, self.rules)


class Text:
    """A model's tokenizer together with the `TextHandling` that it is used under."""

    def __init__(
        self,
        path: Path,
        *,
        system: str | None = None,
        instruction: str | None = None,
        rules: Sequence[str] = DEFAULT_RULES,
    ) -> None:
        """Reads the tokenizer in `path`; raises `CheckpointError` if there is none, `UsageError` for bad `rules`."""
        for rule in rules:
            if rule not in RULES:
                raise unknown("answer rule", rule, RULES)
        self.tokenizer = load_tokenizer(path)
        template = self.tokenizer.chat_template
        digest = hashlib.sha256(str(template).encode()).hexdigest() if template else None
        vocabulary = self.tokenizer.get_vocab()
        thinks = THINK_CLOSE in str(template) or THINK_CLOSE in vocabulary
        harmony = {"<|channel|>", "<|message|>"} <= vocabulary.keys()
        # End-of-sequence and the like are no words of an answer; the end of thinking is what it is found by.
        finds = {vocabulary.get(mark) for mark in (THINK_CLOSE, *(HARMONY if harmony else ()))}
        self._marks = set(self.tokenizer.all_special_ids) - finds
        self.handling = TextHandling(digest, system, instruction, thinks, tuple(rules), harmony)
        unknown_token = getattr(self.tokenizer.backend_tokenizer.model, "unk_token", None)
        # some tokenizers write the end of sequence for what they cannot write
        self._unwritable = self.tokenizer.eos_token_id if unknown_token == self.tokenizer.eos_token else None

    def query(self, question: str) -> list[int]:
        """Token ids of a question, up to where the model starts to think; raises `UsageError` if it has none for it."""
        handling = self.handling
        content = f"{question}\n\n{handling.instruction}" if handling.instruction else question
        if handling.template_digest is None:
            plain = f"{handling.system}\n\n{content}" if handling.system else content
            tokens = [int(id) for id in self.tokenizer(plain)["input_ids"]]
            if self._unwritable is not None and self._unwritable in tokens[:-1]:
                raise UsageError(
                    f"the model's tokenizer cannot write {show(question[:40])!r}; ask it what it was made for"
                )
            return tokens
        messages = [{"role": "user", "content": content}]
        if handling.system is not None:
            messages.insert(0, {"role": "system", "content": handling.system})
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return [int(id) for id in encoded["input_ids"]]

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of text as it stands, nothing added."""
        return tuple(int(id) for id in self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens kept."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def answer(self, responses: Sequence[Sequence[int]]) -> Answer | None:
        """The answer of a trace, from the response tokens of all its chunks read as one text."""
        return self.handling.answer(
            self.decode([t for response in responses for t in response if t not in self._marks])
        )

    def ruled(self, rules: Sequence[str]) -> Text:
        """The same words and tokens, but answers are found by these `rules`; raises `UsageError` for an unknown one."""
        for rule in rules:
            if rule not in RULES:
                raise unknown("answer rule", rule, RULES)
        other = copy(self)
        other.handling = replace(self.handling, rules=tuple(rules))
        return other


def load_tokenizer(path: Path) -> Any:
    """The Hugging Face tokenizer in a directory; runs no code from there. Raises `CheckpointError`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot load a tokenizer from {path}: {reason}") from None


_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def show(text: str) -> str:
    r"""`text` made safe to print: control, bidirectional, zero-width and unassigned characters become `\x1b`, `\u202e`.

    Newlines and tabs stay. It is for eyes, not for parsing: a backslash that was there already looks the same.
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _INVISIBLE else c.encode("unicode_escape").decode()
        for c in text
    )
