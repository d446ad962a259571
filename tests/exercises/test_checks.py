"""Every exercise of the book: its solution passes, each planted slip gets its own hint, a stub stops nothing."""

import json
import math
import subprocess
import sys
from collections import deque
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy
import pytest
import torch

from prehab_lib import exercises
from prehab_lib.exercises import Exercise, answers, checks, solved
from prehab_lib.exercises.answers import decode
from prehab_lib.exercises.checks import PASSED, AnswerKey, read
from tests.beside import ROOT, load

build = load("course/build.py")
asked_in, encode = build.asked_in, build.encode
NAMES = sorted(file.stem for file in Path(exercises.__file__).parent.glob("ex[0-9][0-9].yaml"))
FILES = {name: exercises.numbered(name) for name in NAMES}
ALL = {id: exercise for numbered in FILES.values() for id, exercise in numbered.items()}


def said(capsys, id, function):
    checks.check(id, function)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.startswith(f"exercise {id}: ")
    return line.removeprefix(f"exercise {id}: ").rstrip("\n")


@pytest.mark.parametrize("name", FILES)
def test_a_solution_passes_and_each_slip_gets_its_own_hint(name, capsys, tmp_path):
    """By the check, and by the file that takes the solutions' place in a student's copy."""
    keys = {id: AnswerKey.of(exercise) for id, exercise in FILES[name].items()}
    (tmp_path / "ex.json").write_text(build.as_json(keys), encoding="utf-8")
    keys = read(tmp_path / "ex.json")
    for id, exercise in FILES[name].items():
        for function, verdict in [(exercise.solution, PASSED), *exercise.slips]:
            assert said(capsys, id, function) == verdict, id
            assert keys[id].judge(answers.collect(function, keys[id].cases)) == verdict, id


def test_a_notebook_has_three_exercises_with_three_different_hints_each():
    for name, numbered in FILES.items():
        for id, exercise in numbered.items():
            assert id.split(".")[0] == str(int(name.removeprefix("ex"))), id
            assert len({hint for _, hint in exercise.slips}) == len(exercise.slips) >= 3 <= len(numbered), id


def test_withheld_cases_are_new_solved_and_tell_a_learnt_answer():
    """A function that knows the shown cases by heart passes the check, and not the grading."""
    for id, exercise in ALL.items():
        shown, whole = AnswerKey.of(exercise), AnswerKey.of(exercise, withheld=True)
        cases = [str(encode(list(case))) for case in whole.cases]
        assert exercise.withheld and len(set(cases)) == len(cases), id
        by_heart = dict(zip(cases, shown.wanted, strict=False))

        def learnt(*arguments, by_heart=by_heart):
            return by_heart.get(str(encode(list(arguments))), 0)

        assert shown.judge(answers.collect(learnt, shown.cases)) == PASSED, id
        assert whole.judge(answers.collect(learnt, whole.cases)) != PASSED, id
        assert whole.judge(answers.collect(exercise.solution, whole.cases)) == PASSED, id


def test_a_notebook_calls_each_check_once_and_its_solutions_too():
    lessons = [file for file in sorted((ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb")) if asked_in(file)]
    asked = {name: [id for file in lessons if name == f"ex{file.name[:2]}" for id in asked_in(file)] for name in NAMES}
    assert asked == {name: list(FILES[name]) for name in NAMES}  # 02 and 02b share a file
    for lesson in lessons:
        solutions = lesson.parent / "solutions" / lesson.name
        assert asked_in(solutions) == asked_in(lesson), lesson.name
        cells = json.loads(solutions.read_text(encoding="utf-8"))["cells"]
        printed = "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))
        assert all(f"exercise {id}: passed\n" in printed for id in asked_in(lesson)), lesson.name


def test_coding_gives_values_back_and_refuses_others():
    value = [1, 2.5, None, True, "x", (1, (2.0,)), {(0.2, 0): [3]}, float("inf")]
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value and [type(item) for item in back] == [type(item) for item in value]
    assert math.isnan(decode(encode(float("nan"))))
    with pytest.raises(TypeError, match="a set cannot be written"):
        encode([{1}])
    assert decode(encode([{1}], foreign=True)) == ["set {1}"]
    with pytest.raises(ValueError, match="not an encoded value"):
        decode({"tuple": [], "and": 1})


def test_a_check_opens_only_the_file_that_can_hold_its_exercise():
    script = "import sys; from prehab_lib import exercises; from prehab_lib.exercises.checks import check; "
    script += "check('10.1', lambda v, b: round(100 * b / (v - b), 1)); "
    script += "print(exercises.numbered.cache_info().currsize, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "exercise 10.1: passed\n1 False\n"


def stub(*arguments):
    """What is asked."""
    raise NotImplementedError("to do")


def test_a_stub_is_not_tried_yet(capsys):
    for id in ALL:
        for function in (lambda *_: None, lambda *_: ..., stub):
            assert said(capsys, id, function) == "not tried yet", id


def forgot_return(s, rank):
    """s, rank -> error."""
    s[rank:].square().sum().sqrt()


def unfinished(s, rank):
    rank += 1
    raise NotImplementedError("shapes\ndiffer")


def test_a_real_attempt_is_not_called_untried(capsys):
    """A forgotten return, an operator that torch does not have, and a function that works on the way to nothing."""
    assert said(capsys, "0.2", forgot_return) == "it returns nothing: is a return missing?"
    assert said(capsys, "0.2", lambda s, rank: print(end="")) == "it returns nothing: is a return missing?"
    power = said(capsys, "0.2", lambda s, rank: s[rank:] ^ 2)
    assert power.startswith("f([12, 4, 3], 1) stopped with NotImplementedError: ")
    assert said(capsys, "0.2", unfinished).endswith("stopped with NotImplementedError: shapes differ")


def test_an_answer_that_stops_where_right_so_far_shows_its_error_else_its_slip(capsys):
    right = solved("0.2").solution
    line = said(capsys, "0.2", lambda s, rank: right(s, rank) if len(s) > 2 else s[9])
    assert line.startswith("f([5, 1], 2) stopped with IndexError: ")
    assert "that is τ itself" in said(capsys, "0.2", lambda s, rank: s[rank])  # wrong before it stops


@pytest.fixture
def verdict(monkeypatch, capsys):
    """Verdict on an answer to x -> 2x, with one slip; a case can be changed by a careless answer."""
    exercise = Exercise(cases=[([1.0, 2.0],), ([3.0],)], solution=lambda x: [2 * v for v in x], slips=[(sum, "a sum")])
    monkeypatch.setattr(checks, "find", lambda id: AnswerKey.of(exercise))
    return lambda function: said(capsys, "9.9", function)


def careless(x):
    x[:] = [2 * v for v in x]
    return x


def test_an_answer_that_is_right_in_another_form_passes(verdict):
    assert verdict(careless) == verdict(careless) == "passed"
    assert verdict(lambda x: tuple(2 * v for v in x)) == "passed"
    assert verdict(lambda x: [2.000001 * v for v in x]) == "passed"
    assert verdict(lambda x: 2 * torch.tensor(x, requires_grad=True)) == "passed"
    assert verdict(lambda x: 2 * numpy.array(x)) == "passed"
    for kind in (Fraction, Decimal, numpy.float32):
        assert verdict(lambda x, kind=kind: deque(kind(2 * v) for v in x)) == "passed"
    assert verdict(lambda x: [Fraction(v) for v in x]) == "not yet: f([1, 2]) gives [1, 2], wanted [2, 4]"
    assert verdict(lambda x: 2 * numpy.array([x])) == "not yet: f([1, 2]) gives [[2, 4]], wanted [2, 4]"


class Odd:
    def __repr__(self):
        raise RuntimeError("no repr")


def test_an_answer_without_a_known_slip_is_shown_beside_the_wanted_one(verdict):
    assert verdict(lambda x: 1 / 0) == "f([1, 2]) stopped with ZeroDivisionError: division by zero"
    assert verdict(lambda x: [2 * v for v in x][:1]) == "not yet: f([1, 2]) gives [2], wanted [2, 4]"
    assert verdict(lambda x: None if len(x) == 1 else [2, 4]) == "not yet: f([3]) gives None, wanted [6]"
    assert verdict(lambda x: sys.exit(3)) == "f([1, 2]) stopped with SystemExit: 3"
    assert verdict(lambda x: Odd()) == "not yet: f([1, 2]) gives a value of type Odd, wanted [2, 4]"
    assert verdict(lambda x: 10**5000) == "not yet: f([1, 2]) gives a value of type int, wanted [2, 4]"
    assert verdict(7.0) == "hand over the function itself, without calling it"
    assert verdict(len) == "not yet: len([1, 2]) gives 2, wanted [2, 4]"


def test_long_arguments_are_told_by_kind_and_size():
    case = (torch.ones(40, 3), [0.123456789] * 30, {"a": 1}, 0.4)
    assert answers.call("g", case) == "g(Tensor 40 × 3, list of 30, {'a': 1}, 0.4)"


def test_an_unknown_id_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r'write the id as text, check\("0.1", ...\)'):
        checks.check(0.1, stub)
    for id in ("1.99", "77.1", "x", "", "1"):
        with pytest.raises(ValueError, match=rf"'{id}' is not known: choose one of 0\.1, .*12\.3$"):
            checks.check(id, sum)
