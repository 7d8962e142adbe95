"""Chat templates, answers and safe printing."""

from __future__ import annotations

import json
import shutil
import time
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.errors import CheckpointError, UsageError
from scaling.text import (
    HARMONY,
    RULES,
    Answer,
    Text,
    TextHandling,
    answer_tag,
    boxed,
    extract,
    last_line,
    last_number,
    show,
)

# answer rules


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", r"\boxed{3}"),
        (r"\boxed{5} and then \boxed{6", "5"),
        (r"\boxed{ never closed \boxed{7}", "7"),
        (r"\boxed{\}}", r"\}"),
        (r"}} \boxed{8}", "8"),
        (r"\boxed{", None),
        ("42", None),
    ],
)
def test_boxed_is_the_box_that_closes_last(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>a</answer> <answer> b\n</answer>", "b"),
        ("<answer>a</answer> <answer>cut off", "a"),
        ("<answer><b>x</b></answer>", "<b>x</b>"),
        ("</answer> <answer>", None),
        ("", None),
    ],
)
def test_answer_tag_is_the_last_closed_one(text: str, answer: str | None) -> None:
    assert answer_tag(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("5 - 9 = -4", "-4"),
        ("5-9", "9"),
        ("x=-4", "-4"),
        ("**-3**", "-3"),
        ("It is 7.", "7"),
        ("1,234,567.5 m", "1234567.5"),
        ("1, 2,3", "3"),
        ("1,23", "23"),
        ("-0.5", "-0.5"),
        ("seven", None),
        ("٣", None),
    ],
)
def test_last_number_reads_plain_decimals(text: str, answer: str | None) -> None:
    assert last_number(text) == answer


def test_last_line_is_the_last_that_is_not_blank() -> None:
    assert last_line("one\n two \n\n \n") == "two"
    assert last_line(" \n") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [("1fq,00z#z", "z"), ("1fq,00z#", None), ("1fq,00z", None), ("#z#z", None), ("# 72 ", "72"), ("", None)],
)
def test_after_hash_is_what_follows_the_only_one(text: str, answer: str | None) -> None:
    assert extract(text, ["after-hash"]) == (Answer(answer, "after-hash") if answer else None)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<result>86</result> and <fact> 12 </fact>, then <result>-1</result>", "result 86\nfact 12\nresult -1"),
        ("<fact>two words</fact><fact></fact><fact>12<result>3</result>", "result 3"),
        ("<fact>1\x00</fact>", None),
        ("nothing", None),
    ],
)
def test_statements_are_facts_and_results_of_one_word_in_their_order(text: str, answer: str | None) -> None:
    assert extract(text, ["statements"]) == (Answer(answer, "statements") if answer else None)


def test_rules_apply_in_their_order_and_the_one_that_found_it_is_named() -> None:
    text = r"\boxed{1} <answer>2</answer> 3"
    assert extract(text) == Answer("1", "boxed")
    assert extract(text, ["answer-tag", "boxed"]) == Answer("2", "answer-tag")
    assert extract("I think 3\nor so", ["boxed", "last-number"]) == Answer("3", "last-number")
    assert extract("yes", ["boxed", "last-number"]) is None


def test_an_unknown_rule_names_the_near_ones() -> None:
    with pytest.raises(UsageError, match="unknown answer rule 'last_number'; did you mean last-number"):
        extract("1", ["last_number"])


@pytest.mark.parametrize(
    "hostile",
    [
        r"\boxed{" * 100_000,
        "{" * 300_000,
        "1,111" * 100_000,
        "9" * 500_000,
        "<answer>" * 100_000,
        "\n" * 500_000,
        "<fact> " * 100_000,
    ],
)
def test_hostile_text_takes_no_longer_than_its_length_deserves(hostile: str) -> None:
    start = time.process_time()
    for rule in RULES:
        extract(hostile, [rule])
    assert time.process_time() - start < 2


@given(st.text())
def test_any_text_has_an_answer_or_none(text: str) -> None:
    answer = extract(text)
    assert answer is None or answer.text


# think tags

THINKER = TextHandling(template_digest=None, system=None, instruction=None, thinks=True)


def test_a_thinkers_answer_comes_after_its_thinking() -> None:
    assert THINKER.answer(r"is it \boxed{1}?</think>No: \boxed{2}") == Answer("2", "boxed")


def test_statements_are_read_from_its_thoughts_too() -> None:
    handling = replace(THINKER, rules=("statements",))
    assert handling.answer("<fact>1</fact></think><fact>2</fact>") == Answer("fact 1\nfact 2", "statements")
    assert replace(THINKER, rules=("statements", "boxed")).answer("<fact>1</fact>") is None


def test_a_thinker_that_still_thinks_has_no_answer() -> None:
    assert THINKER.answer(r"<think> it is \boxed{1}") is None


def test_a_template_that_closes_thinking_makes_a_thinker(chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "thinker"
    shutil.copytree(chat_model, path)
    template = path / "chat_template.jinja"
    template.write_text(template.read_text() + "{# </think> #}")
    assert Text(path).handling.thinks
    assert not Text(chat_model).handling.thinks


# queries


def test_a_query_is_the_template_up_to_where_the_model_speaks(chat_model: Path) -> None:
    text = Text(chat_model, system="Be brief.", instruction="Think first.")
    assert text.decode(text.query("1 + 1?")) == (
        "<|start|>system\nBe brief.<|end|>\n<|start|>user\n1 + 1?\n\nThink first.<|end|>\n<|start|>assistant\n"
    )


def test_without_a_template_the_question_is_encoded_as_it_is(chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "base"
    shutil.copytree(chat_model, path)
    (path / "chat_template.jinja").unlink()
    text = Text(path)
    assert text.handling.template_digest is None
    assert text.decode(text.query("1 + 1 =")) == "1 + 1 ="


def test_an_answer_may_lie_across_a_chunk_boundary_and_ends_before_end_of_sequence(chat_model: Path) -> None:
    text = Text(chat_model)
    first, second = (text.tokenizer(part)["input_ids"] for part in (r"it is \box", "ed{é4}"))
    assert text.answer([first, [*second, text.tokenizer.eos_token_id]]) == Answer("é4", "boxed")


def test_other_rules_find_other_answers_with_the_same_tokens(chat_model: Path) -> None:
    text = Text(chat_model, instruction="Think.", rules=("last-number",))
    other = text.ruled(("last-line",))
    said = [text.tokenizer("It is 7")["input_ids"]]
    assert (text.answer(said), other.answer(said)) == (Answer("7", "last-number"), Answer("It is 7", "last-line"))
    assert other.query("?") == text.query("?")
    with pytest.raises(UsageError, match="unknown answer rule 'last'"):
        text.ruled(("last",))


def test_what_decides_the_text_is_recorded_as_json(chat_model: Path) -> None:
    record = json.loads(json.dumps(Text(chat_model, system="S", rules=["boxed"]).handling.record()))
    assert record["rules"] == ["boxed"]
    assert record["think_tags"] == ["<think>", "</think>"]
    assert (record["system"], record["instruction"], record["thinks"]) == ("S", None, False)
    assert len(record["template_digest"]) == 64


def test_a_directory_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load a tokenizer") as error:
        Text(tmp_path)
    assert "\n" not in str(error.value)


# safe printing


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("null\x00", r"null\x00"),
        ("\x9b2J", r"\x9b2J"),
        ("over\rwritten\b", r"over\rwritten\x08"),
        ("safe\u202egnp.exe", r"safe\u202egnp.exe"),
        ("\u2066\u200b\ufeff\u2028", r"\u2066\u200b\ufeff\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("plain\n\ttext, é 漢 😀 <b>", "plain\n\ttext, é 漢 😀 <b>"),
    ],
)
def test_show_makes_the_invisible_visible(hostile: str, shown: str) -> None:
    assert show(hostile) == shown


@given(st.text(alphabet=st.characters()))
def test_nothing_that_steers_a_terminal_survives(text: str) -> None:
    categories = {unicodedata.category(c) for c in show(text).replace("\n", "").replace("\t", "")}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


# Harmony, the format of gpt-oss


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of single bytes that has Harmony's marks, which are special as in gpt-oss, and its template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate([*HARMONY, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(HARMONY))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|return|>", bos_token="<|start|>")
    fast.chat_template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    path = tmp_path_factory.mktemp("tokenizers") / "harmony"
    fast.save_pretrained(path)
    return path


THOUGHT = "<|channel|>analysis<|message|>2+2 is \\boxed{5}, no<|end|>"


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (THOUGHT + "<|start|>assistant<|channel|>final<|message|>It is 4.<|return|>", "4"),
        (THOUGHT + "<|start|>assistant<|channel|>final<|message|>It is 4", "4"),
        (THOUGHT + "<|start|>assistant<|channel|>final <|constrain|>json<|message|>4<|return|>", "4"),
        ("<|channel|>final<|message|>3<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>", "4"),
        ("<|channel|>final<|message|>4<|end|><|start|>assistant<|channel|>analysis<|message|>5 after all", "4"),
        ("<|channel|>commentary to=functions.f<|message|>7<|call|>", None),
        ("<|channel|>analysis<|message|>the final answer is 4<|return|>", None),
        ("<|channel|>analysis<|message|>still thinking of 4", None),
        (THOUGHT + "<|start|>assistant<|channel|>final", None),
        ("4", None),
    ],
)
def test_harmony_answers_in_the_final_channel_wherever_a_chunk_ends(
    harmony: Path, reply: str, answer: str | None
) -> None:
    text = Text(harmony)
    tokens = text.encode(reply)
    for boundary in range(len(tokens) + 1):
        found = text.answer([tokens[:boundary], tokens[boundary:]])
        assert (found.text if found else None) == answer


def test_harmony_is_recorded(harmony: Path, chat_model: Path) -> None:
    assert Text(harmony).handling.record()["harmony"] is True
    assert Text(chat_model).handling.record()["harmony"] is False
    query = Text(harmony).query("2+2?")
    assert Text(harmony).decode(query) == "<|start|>user<|message|>2+2?<|end|><|start|>assistant"
