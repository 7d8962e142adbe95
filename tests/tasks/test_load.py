"""Every task by its spec: the same problems each time, ids that tell them apart, and answers of any kind judged."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scaling.errors import UsageError
from scaling.tasks import TASKS, Task, load
from scaling.text import RULES, extract

MEGABYTE = 1 << 20
HOSTILE = [
    "",
    "\x00" * 100,
    "\x1b[2J",
    "\ud800",
    "\u202e1",
    "١٢٣",
    "²",
    "-",
    "$" * MEGABYTE,
    "1" * MEGABYTE,
    " " * MEGABYTE,
    "1," * (MEGABYTE // 2),
    "1,111" + ",111" * (MEGABYTE // 4),
    "\n" * MEGABYTE,
    "1\n" * (MEGABYTE // 2),
    "{" * MEGABYTE,
    r"\boxed{" * (MEGABYTE // 8) + "1" + "}" * (MEGABYTE // 8),
    "<answer>" * (MEGABYTE // 8),
    "<answer>1" * (MEGABYTE // 8) + "</answer>",
    "<fact>" + " " * MEGABYTE + "x",
    "<fact>123456789012</fact>" * (MEGABYTE // 25),
    "result 1\n" * (MEGABYTE // 8) + "fact 123456789012\nfact 123456789012",
    "fact 123456789012\n" * (MEGABYTE // 18),
    "#" * MEGABYTE,
    "1e999999999",
    "9**9**9**9",
    "10^{10^{10^{10}}}",
    "__import__('os').system('true')",
]


@pytest.fixture(scope="module", params=["multiplication:k=3", "grid:size=4..6", "self-recall:n=3", "walk", "letters"])
def task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Task]:
    spec = request.param
    if spec == "letters":
        path = tmp_path_factory.mktemp("rows") / "p.jsonl"
        path.write_text("".join(json.dumps({"question": f"{i}?", "answer": "B"}) + "\n" for i in range(12)))
        spec = f"rows:path={path},verifier=letter"
    task = load(spec, seed=5)
    yield task
    task.close()


def test_problems_are_the_same_however_many_are_asked_for_and_told_apart_by_id(task: Task) -> None:
    problems = task.problems(12)
    assert task.problems(5) == problems[:5]
    assert len({problem.id for problem in problems}) == 12
    json.dumps([problem.meta for problem in problems], allow_nan=False)


def test_no_answer_is_worth_nothing(task: Task) -> None:
    assert task.score(task.problems(1)[0], None) == 0


@pytest.mark.parametrize("answer", HOSTILE, ids=range(len(HOSTILE)))
def test_any_text_is_judged_at_once_and_none_of_it_is_right(task: Task, answer: str) -> None:
    problem = task.problems(1)[0]
    start = time.process_time()
    found = extract(answer, task.rules) if task.rules else extract(answer)
    for text in (answer, found.text if found else None):
        assert 0 <= task.score(problem, text) < 1
    assert time.process_time() - start < 2.0


def test_the_rules_that_tasks_name_are_there(task: Task) -> None:
    assert set(task.rules or ()) <= set(RULES)


@pytest.mark.parametrize("spec", ["multiplication:k=3", "grid:size=4", "self-recall:n=3", "walk"])
def test_another_seed_asks_other_questions(spec: str) -> None:
    asked = [{p.question for p in load(spec, seed=seed).problems(8)} for seed in (0, 1)]
    assert asked[0] != asked[1]


@pytest.mark.parametrize("spec", ["multiplication:digits=1..3", "grid:size=4..6", "self-recall:n=1..3"])
def test_a_ladder_takes_its_difficulties_in_turn_and_has_the_problems_of_each_alone(spec: str) -> None:
    problems = load(spec, seed=2).problems(7)
    lowest = problems[0].meta["difficulty"]
    assert [p.meta["difficulty"] - lowest for p in problems] == [0, 1, 2, 0, 1, 2, 0]
    alone = load(spec.partition("..")[0], seed=2).problems(3)
    assert alone == problems[::3]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gird:size=3", "unknown task 'gird'; did you mean grid or .* There are aime24, .*self-recall, and 1"),
        ("qqqq", "unknown task 'qqqq'; known: .*aime24, .*gpqa-diamond, .*walk"),
        ("grid:szie=4", "unknown parameter of grid 'szie'; did you mean size"),
        ("grid:size=3", "parameter size of grid is '3'; expected 4 to 32, as in size="),
        ("grid:size=9..4", "parameter size of grid is '9..4'"),
        ("grid:holes=2", "parameter holes of grid is '2'; expected a share above 0"),
        ("grid:holes=nan", "parameter holes of grid is 'nan'; expected a share"),
        ("grid:size=4,size=5", "'size' comes twice"),
        ("multiplication:k=0", "parameter k of multiplication is '0'; expected 1 to 100"),
        ("multiplication:k=2,digits=1..3", "unknown parameter of multiplication 'digits'"),
        ("self-recall:n=many", "parameter n of self-recall is 'many'"),
        ("walk:low=9,high=3", "walks of 9 to 3 steps"),
        ("walk:low=1..3", "parameter low of walk is '1..3'; expected one number, as in low=16"),
        ("walk:high=256", "parameter high of walk is '256'; expected 0 to 255"),
        ("rows", "no path; expected one, as in rows:path="),
        ("rows:path=nothing.jsonl", "cannot read nothing.jsonl: No such file"),
        ("rows:path=x.jsonl,verifier=maths", "unknown verifier 'maths'; did you mean math"),
    ],
)
def test_a_bad_spec_is_one_line(spec: str, message: str) -> None:
    if message.startswith("unknown task"):
        pytest.importorskip("reasoning_gym", reason="the extra [tasks] is not installed")
    with pytest.raises(UsageError, match=message) as error:
        load(spec)
    assert "\n" not in str(error.value)


def test_every_task_but_those_of_reasoning_gym_is_listed() -> None:
    sets = {"aime24", "aime25", "hmmt25", "math500", "gsm8k", "gpqa-diamond"}
    assert set(TASKS) == sets | {"rows", "walk", "multiplication", "grid", "self-recall"}


def test_a_file_without_any_answer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1+1?"}\n{"question": "2+2?"}\n')
    with pytest.raises(UsageError, match=r'line 1 has no answer; expected a row such as {"question"'):
        load(f"rows:path={path}")


PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()


def test_the_page_lists_every_task_with_a_default_that_is_so() -> None:
    rows = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `") and line.count("|") == 6]
    listed = {name.strip(" `"): re.findall(r"`(\w+)=([^`]+)`", parameters) for name, parameters in rows}
    assert list(listed) == list(TASKS)
    for name in ("walk", "multiplication", "grid", "self-recall"):
        given = ",".join(f"{key}={value}" for key, value in listed[name] if key != "k")
        assert load(f"{name}:{given}").parameters() == load(name).parameters()


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)```", PAGE.partition("## ")[0], re.DOTALL | re.MULTILINE)
    exec(compile(example, "tasks.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in printed] == [[str(k), "1.0"] for k in (1, 2, 3, 4)]


@pytest.mark.parametrize("command", re.findall(r"^scaling trace .*", PAGE, re.MULTILINE))
def test_the_commands_of_the_page_have_specs_that_load(command: str) -> None:
    spec = shlex.split(command)[shlex.split(command).index("--task") + 1]
    if ":path=" in spec:
        assert spec.partition(":")[0] in TASKS
    else:
        load(spec).close()
