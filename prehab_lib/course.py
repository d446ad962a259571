"""The course as data: course/course.yaml, read and checked against the notebooks, and which
exercises a notebook asks.
"""

import importlib
import json
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from prehab_lib import exercises
from prehab_lib.exercises import Exercise

CALL = re.compile(r"""^check\(["'](\d+\.\d+)["'], (\w+)\)""", re.MULTILINE)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Strict):
    """Part of a lecture's plan: so many minutes of something."""

    minutes: int
    what: str


class Question(_Strict):
    """For the whole class, with the answer one hopes for."""

    ask: str
    answer: str


class Lecture(_Strict):
    """One lecture.  notebooks: name -> its sections that are shown.  exercises and homework: id ->
    minutes they take.
    """

    number: int
    title: str
    goals: list[str]
    prerequisites: list[str]
    notebooks: dict[str, str]
    plan: list[Step]
    questions: list[Question]
    exercises: dict[str, int]
    homework: dict[str, int] = {}

    @property
    def minutes(self) -> dict[str, int]:
        """Exercise -> minutes, in class and at home."""
        return self.exercises | self.homework

    @model_validator(mode="after")
    def _fits(self):
        if (total := sum(step.minutes for step in self.plan)) != 90:
            raise ValueError(f"lecture {self.number}: its plan has {total} minutes, not 90")
        return self


class Course(_Strict):
    """All lectures, in order."""

    lectures: list[Lecture]

    def lecture_of(self, notebook: str) -> Lecture:
        return next(lecture for lecture in self.lectures if notebook in lecture.notebooks)


def load(root: Path) -> Course:
    """The course of a repository.

    Raises FileNotFoundError without course/course.yaml; ValueError, one sentence, where it is
    malformed or names a notebook or an exercise that is not there, or one of them twice, or leaves
    an exercise of its notebooks out.
    """
    import yaml

    file = root / "course" / "course.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: run this in the repository's folder")
    try:
        course = Course(**yaml.safe_load(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"course.yaml: {where}: {first['msg'].removeprefix('Value error, ')}"
        ) from None
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(
            f"course.yaml is no list of lectures: {' '.join(str(error).split())[:120]}"
        ) from None
    _check(course, root)
    return course


def _check(course: Course, root: Path) -> None:
    shown = [name for lecture in course.lectures for name in lecture.notebooks]
    if twice := sorted({name for name in shown if shown.count(name) > 1}):
        raise ValueError(
            f"course.yaml: {twice[0]} is in two lectures: its students would get it twice"
        )
    for lecture in course.lectures:
        for name in lecture.notebooks:
            if not (root / "notebooks" / f"{name}.ipynb").is_file():
                raise ValueError(
                    f"course.yaml: lecture {lecture.number} names {name}, which notebooks/ does not hold"
                )
        asked = {
            id
            for name in lecture.notebooks
            for id in exercises_of(root / "notebooks" / f"{name}.ipynb")
        }
        if wrong := asked ^ set(lecture.minutes):
            raise ValueError(
                f"course.yaml: lecture {lecture.number} and its notebooks differ in exercise {min(wrong)}: give each of them "
                "its minutes, under exercises or homework"
            )


def exercises_of(notebook: Path) -> dict[str, str]:
    """Exercise -> name of the function that is asked for, by the notebook's `check` calls."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return {
        id: name
        for cell in cells
        if cell["cell_type"] == "code"
        for id, name in CALL.findall("".join(cell["source"]))
    }


def asked_in(notebook: Path) -> dict[str, tuple[str, Exercise]]:
    """Exercise -> (name of the function, the exercise with its solution).

    Raises ValueError where this copy of the library has answers only, as students have it.
    """
    found = {}
    for id, name in exercises_of(notebook).items():
        try:
            module = module_of(f"ex{id.partition('.')[0]:0>2}")
        except ModuleNotFoundError:
            text = f"no solution of exercise {id} is here: build and grade courses in the whole repository"
            raise ValueError(text) from None
        found[id] = name, module.EXERCISES[id]
    return found


def module_of(name: str):
    """The module ex07 of exercises with solutions.  Raises ModuleNotFoundError."""
    return importlib.import_module(f"{exercises.__name__}.{name}")
