"""Every exercise of the book: its solution passes, each planted slip gets its own hint, a stub stops nothing."""

import importlib
import json
import math
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prehab_lib import exercises
from prehab_lib.course import exercises_of
from prehab_lib.exercises import answers, checks
from prehab_lib.exercises.answer_key import PASSED, AnswerKey, read, write
from prehab_lib.exercises.checks import Exercise
from prehab_lib.exercises.coding import Foreign, decode, encode

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    m.name: importlib.import_module(f"{exercises.__name__}.{m.name}")
    for m in pkgutil.iter_modules(exercises.__path__)
    if re.fullmatch(r"ex\d\d", m.name)
}
ALL = {id: exercise for module in FILES.values() for id, exercise in module.EXERCISES.items()}


def said(capsys, id, function):
    checks.check(id, function)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.startswith(f"exercise {id}: ")
    return line.removeprefix(f"exercise {id}: ").rstrip("\n")


def test_the_solution_passes_and_each_slip_gets_its_own_hint(capsys):
    for id, exercise in ALL.items():
        assert said(capsys, id, exercise.solution) == "passed", id
        for slip, hint in exercise.slips:
            assert said(capsys, id, slip) == hint, f"{id}: {hint}"


def test_a_notebook_has_three_exercises_with_three_different_hints_each():
    for name, module in FILES.items():
        assert len(module.EXERCISES) >= 3, name
        for id, exercise in module.EXERCISES.items():
            assert id.split(".")[0] == str(int(name.removeprefix("ex"))), id
            assert len({hint for _, hint in exercise.slips}) == len(exercise.slips) >= 3, id


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


@pytest.mark.parametrize("name", FILES)
def test_a_notebook_calls_each_check_once_and_its_solutions_too(name):
    [lesson] = (ROOT / "notebooks").glob(f"{name.removeprefix('ex')}_*.ipynb")
    assert list(exercises_of(lesson)) == list(FILES[name].EXERCISES)
    assert exercises_of(ROOT / "notebooks" / "solutions" / lesson.name) == exercises_of(lesson)
    cells = json.loads((ROOT / "notebooks" / "solutions" / lesson.name).read_text(encoding="utf-8"))["cells"]
    said = "".join("".join(out.get("text", "")) for cell in cells for out in cell.get("outputs", []))
    assert all(f"exercise {id}: passed\n" in said for id in FILES[name].EXERCISES)


def test_every_notebook_with_exercises_has_a_file_of_them():
    lessons = [file for file in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")) if exercises_of(file)]
    assert [f"ex{file.name[:2]}" for file in lessons] == sorted(FILES)


def test_students_answers_are_checked_as_by_the_solutions(tmp_path):
    """From the file that takes the solutions' place every solution passes and every slip gets its hint."""
    write({id: AnswerKey.of(exercise) for id, exercise in ALL.items()}, tmp_path / "ex.json")
    keys = read(tmp_path / "ex.json")
    assert list(keys) == list(ALL)
    for id, key in keys.items():
        assert key.judge(answers.collect(ALL[id].solution, key.cases)) == PASSED, id
        for slip, hint in ALL[id].slips:
            assert key.judge(answers.collect(slip, key.cases)) == hint, f"{id}: {hint}"


def test_a_file_of_exercises_that_is_none_is_refused(tmp_path):
    for text in (
        "",
        "[]",
        '{"format": 2, "exercises": {}}',
        '{"format": 1, "exercises": {"1.1": {"cases": [{"x": 1}]}}}',
    ):
        (tmp_path / "ex01.json").write_text(text)
        with pytest.raises(ValueError, match=r"ex01.json is no file of exercises .*take a fresh copy"):
            read(tmp_path / "ex01.json")


def test_coding_gives_values_back_and_refuses_others():
    value = [1, 2.5, None, True, "x", (1, (2.0,)), {(0.2, 0): [3]}, float("inf")]
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value and [type(item) for item in back] == [type(item) for item in value]
    assert math.isnan(decode(encode(float("nan"))))
    with pytest.raises(TypeError, match="a set cannot be written"):
        encode([{1}])
    assert decode(encode({1}, foreign=True)) != {1} and isinstance(decode(encode({1}, foreign=True)), Foreign)
    with pytest.raises(ValueError, match="not an encoded value"):
        decode({"tuple": [], "and": 1})


def test_a_check_opens_only_the_file_that_can_hold_its_exercise():
    script = "import sys; from prehab_lib.exercises.checks import check; check('10.1', lambda v, b: round(100 * (v / b - 1), 1)); "
    script += "print([n for n in sys.modules if n.startswith('prehab_lib.exercises.ex')], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "exercise 10.1: passed\n['prehab_lib.exercises.ex10'] False\n"


def raising(error):
    def function(*arguments):
        raise error

    return function


def stub(*arguments):
    """What is asked."""
    raise NotImplementedError("to do")


def test_a_stub_is_not_tried_yet(capsys):
    for id in ALL:
        for number, untried in enumerate((lambda *_: None, lambda *_: ..., stub)):
            assert said(capsys, id, untried) == "not tried yet", f"{id}, stub {number}"


def forgot_return(s, rank):
    """s, rank -> error."""
    s[rank:].square().sum().sqrt()


def wrong_power(s, rank):
    return (s[rank:] ^ 2).sum()


def test_a_real_attempt_is_not_called_untried(capsys):
    """A forgotten return, an operator that torch does not have, and a function that works on the way to nothing."""
    assert said(capsys, "0.2", forgot_return) == "it returns nothing: is a return missing?"
    assert said(capsys, "0.2", lambda s, rank: print(end="")) == "it returns nothing: is a return missing?"
    line = said(capsys, "0.2", wrong_power)
    assert line.startswith("wrong_power([12, 4, 3], 1) stopped with NotImplementedError: ")
    assert said(capsys, "0.2", raising(NotImplementedError("mine"))).endswith("NotImplementedError: mine")


def test_what_a_class_writes_gets_a_hint_in_the_notebook(capsys):
    for id, answer, words in (
        ("0.1", lambda m, n, removed: int((1 - removed) * min(m, n)), "keeps a share of min"),
        ("0.1", lambda m, n, removed: min(m, n), "the full rank"),
        ("0.2", lambda s, rank: s[rank], "error in the spectral norm"),
        ("0.3", lambda m, n, share: math.ceil(share * m) * (m + n) / (m * n), "there are only min"),
        ("0.4", lambda w, rms: (w * rms.sqrt()).argmax(), "one root too many"),
        ("0.4", lambda w, rms: (w / rms).argmax(), "not for less"),
    ):
        assert words in said(capsys, id, answer), words


def test_an_answer_that_stops_where_right_so_far_shows_its_error(capsys):
    def half(s, rank):
        return s[rank:].square().sum().sqrt() if len(s) > 2 else s[9]

    assert said(capsys, "0.2", half).startswith("half([5, 1], 2) stopped with IndexError: ")


@pytest.fixture
def sample(monkeypatch):
    """x -> 2x, with one slip; a case can be changed by a careless answer."""
    exercise = Exercise(cases=[([1.0, 2.0],), ([3.0],)], solution=lambda x: [2 * v for v in x], slips=[(sum, "a sum")])
    monkeypatch.setattr(checks, "find", lambda id: AnswerKey.of(exercise))


def test_an_error_in_the_answer_becomes_one_line(sample, capsys):
    line = said(capsys, "9.9", raising(RuntimeError("shapes\ndo not multiply")))
    assert line == "function([1, 2]) stopped with RuntimeError: shapes do not multiply"


def test_an_answer_without_a_known_slip_is_shown_beside_the_wanted_one(sample, capsys):
    assert said(capsys, "9.9", lambda x: [2 * v for v in x][:1]) == "not yet: f([1, 2]) gives [2], wanted [2, 4]"
    assert said(capsys, "9.9", lambda x: None if len(x) == 1 else [2, 4]) == "not yet: f([3]) gives None, wanted [6]"
    assert said(capsys, "9.9", 7.0) == "hand over the function itself, without calling it"

    def doubled(x):
        return 0

    assert said(capsys, "9.9", doubled) == "not yet: doubled([1, 2]) gives 0, wanted [2, 4]"


def test_long_arguments_are_told_by_kind_and_size():
    import torch

    case = (torch.ones(40, 3), [0.123456789] * 30, {"a": 1}, 0.4)
    assert answers.call("g", case) == "g(Tensor 40 × 3, list of 30, {'a': 1}, 0.4)"


def test_an_answer_that_changes_its_arguments_is_judged_fairly(sample, capsys):
    def careless(x):
        x[:] = [2 * v for v in x]
        return x

    assert said(capsys, "9.9", careless) == "passed"
    assert said(capsys, "9.9", careless) == "passed"


def test_tuples_single_precision_tensors_and_arrays_are_accepted(sample, capsys):
    import numpy
    import torch

    for right in (
        lambda x: tuple(2 * v for v in x),
        lambda x: [2.000001 * v for v in x],
        lambda x: 2 * torch.tensor(x, requires_grad=True),
        lambda x: 2 * numpy.array(x),
    ):
        assert said(capsys, "9.9", right) == "passed"
    assert said(capsys, "9.9", lambda x: 2 * numpy.array([x])) == "not yet: f([1, 2]) gives [[2, 4]], wanted [2, 4]"


def test_an_unknown_id_is_refused_with_the_known_ones():
    for id in ("1.99", "77.1", "x", "", "1"):
        with pytest.raises(ValueError, match=rf"'{id}' is not known: choose one of 0\.1, .*10\.4$"):
            checks.check(id, sum)
