"""Every exercise of the book: its solution passes, each planted slip gets its own hint, a stub stops nothing."""

import importlib
import pkgutil

import pytest

from prehab_lib import checks, exercises
from prehab_lib.checks import Exercise

FILES = {
    m.name: importlib.import_module(f"{exercises.__name__}.{m.name}") for m in pkgutil.iter_modules(exercises.__path__)
}
ALL = {id: exercise for module in FILES.values() for id, exercise in module.EXERCISES.items()}
SLIPS = [(id, number) for id, exercise in ALL.items() for number in range(len(exercise.slips))]


def said(capsys, id, function):
    checks.check(id, function)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and line.startswith(f"exercise {id}: ")
    return line.removeprefix(f"exercise {id}: ").rstrip("\n")


@pytest.mark.parametrize("id", ALL)
def test_the_solution_passes(id, capsys):
    assert said(capsys, id, ALL[id].solution) == "passed"


@pytest.mark.parametrize("id, number", SLIPS)
def test_each_slip_gets_its_own_hint(id, number, capsys):
    function, hint = ALL[id].slips[number]
    assert said(capsys, id, function) == hint


@pytest.mark.parametrize("name", FILES)
def test_a_notebook_has_three_exercises_with_three_different_hints_each(name):
    numbered = FILES[name].EXERCISES
    assert len(numbered) >= 3
    assert all(id.split(".")[0] == str(int(name.removeprefix("ex"))) for id in numbered)
    for exercise in numbered.values():
        assert len({hint for _, hint in exercise.slips}) == len(exercise.slips) >= 3


def raising(error):
    def function(*arguments):
        raise error

    return function


@pytest.mark.parametrize("id", ALL)
@pytest.mark.parametrize("stub", [lambda *_: None, lambda *_: ..., raising(NotImplementedError())])
def test_a_stub_is_not_tried_yet(id, stub, capsys):
    assert said(capsys, id, stub) == "not tried yet"


@pytest.fixture
def sample(monkeypatch):
    """x -> 2x, with one slip; a case can be changed by a careless answer."""
    exercise = Exercise(cases=[([1.0, 2.0],), ([3.0],)], solution=lambda x: [2 * v for v in x], slips=[(sum, "a sum")])
    monkeypatch.setattr(checks, "find", lambda id: exercise)


def test_an_error_in_the_answer_becomes_one_line(sample, capsys):
    line = said(capsys, "9.9", raising(RuntimeError("shapes\ndo not multiply")))
    assert line == "stopped at case 1 with RuntimeError: shapes do not multiply"


def test_an_answer_without_a_known_slip_is_shown_beside_the_wanted_one(sample, capsys):
    assert said(capsys, "9.9", lambda x: [2 * v for v in x][:1]) == "not yet: case 1 gives [2], wanted [2, 4]"
    assert said(capsys, "9.9", lambda x: None if len(x) == 1 else [2, 4]) == "not yet: case 2 gives None, wanted [6]"
    assert said(capsys, "9.9", 7.0) == "hand over the function itself, without calling it"


def test_an_answer_that_changes_its_arguments_is_judged_fairly(sample, capsys):
    def careless(x):
        x[:] = [2 * v for v in x]
        return x

    assert said(capsys, "9.9", careless) == "passed"
    assert said(capsys, "9.9", careless) == "passed"


@pytest.mark.parametrize("right", [lambda x: tuple(2 * v for v in x), lambda x: [2.000001 * v for v in x]])
def test_tuples_and_single_precision_are_accepted(sample, capsys, right):
    assert said(capsys, "9.9", right) == "passed"


def test_tensors_and_arrays_are_accepted(sample, capsys):
    import numpy
    import torch

    assert said(capsys, "9.9", lambda x: 2 * torch.tensor(x, requires_grad=True)) == "passed"
    assert said(capsys, "9.9", lambda x: 2 * numpy.array(x)) == "passed"
    assert said(capsys, "9.9", lambda x: 2 * numpy.array([x])) == "not yet: case 1 gives [[2, 4]], wanted [2, 4]"


def test_an_unknown_id_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'1\.99' is not known.*1\.1"):
        checks.check("1.99", sum)
