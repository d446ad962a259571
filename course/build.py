"""`python course/build.py` (make course): course/_build/student to hand out, course/_build/teacher with the solutions.

The student's folder is this repository's notebooks with blank exercises and its library with answers in the place of
solutions. The teacher's notebooks have each solution folded in behind its exercise. Both folders hold the tables of figures/,
which notebooks quote. What an earlier build wrote is kept as course/_build/before. The lectures of course/README.md are written
anew from course.yaml.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "course")]  # this checkout's library, installed or not

from asked import CALL, asked_in, encode  # noqa: E402

from prehab_lib.exercises import solved  # noqa: E402
from prehab_lib.exercises.checks import AnswerKey  # noqa: E402
from prehab_lib.tasks.parameters import content, load_file  # noqa: E402

HANDED_OUT = ("LICENSE", "Makefile", "pyproject.toml", "environment.yml", "params", "docs")
HANDED_OUT += ("requirements.lock", "requirements-pretrained.lock")
POINTS_AT_SOLUTIONS = re.compile(r" ?(?:Executed s|S)olutions(?: are in|:) [^\n|]*")
STUB = re.compile(
    r"^def \w+\([^\n]*\):(?:\s+(?:\"\"\"(?:(?!\"\"\").)*\"\"\"|\"[^\n]*\"|'[^\n]*'))?\s+\.\.\.$",
    re.MULTILINE | re.DOTALL,
)
COUNTED = re.compile(r"\d+(?= exercises\s+that\s+check\s+themselves)")
START, END = "<!-- lectures, from course.yaml: make course -->", "<!-- end of lectures -->"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Step(_Strict):
    """Part of a lecture's plan: so many minutes of something."""

    minutes: PositiveInt
    what: str


class Question(_Strict):
    """For the whole class, with the answer one hopes for."""

    ask: str
    answer: str


class Lecture(_Strict):
    """notebooks: name -> its sections that are shown. exercises, homework, optional: id -> minutes. besides: also set for home."""

    number: PositiveInt
    title: str
    goals: list[str]
    prerequisites: list[str]
    notebooks: dict[str, str]
    plan: list[Step]
    questions: list[Question]
    exercises: dict[str, PositiveInt]
    homework: dict[str, PositiveInt] = {}
    optional: dict[str, PositiveInt] = {}
    besides: str = ""

    @model_validator(mode="after")
    def _fits(self):
        if (total := sum(step.minutes for step in self.plan)) != 90:
            raise ValueError(f"lecture {self.number}: its plan has {total} minutes, not 90")
        return self

    def minutes(self) -> list[tuple[str, str]]:
        """(exercise, its minutes and where it is done), of every exercise of this lecture."""
        places = {"in class": self.exercises, "at home": self.homework, "for who wants more": self.optional}
        return [(id, f"{number} minutes {place}") for place, given in places.items() for id, number in given.items()]


class Course(_Strict):
    """All lectures, in order."""

    lectures: list[Lecture] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self):
        numbers = [lecture.number for lecture in self.lectures]
        if twice := {number for number in numbers if numbers.count(number) > 1}:
            raise ValueError(f"two lectures have the number {min(twice)}: give each its own")
        ids = [id for lecture in self.lectures for id, _ in lecture.minutes()]
        if twice := {id for id in ids if ids.count(id) > 1}:
            raise ValueError(f"exercise {min(twice)} is given twice: keep one of its places")
        return self


def load(root: Path = ROOT) -> list[Lecture]:
    """The lectures of course/course.yaml, checked against the notebooks. Raises ValueError, one sentence, naming what is wrong."""
    try:
        plain = load_file(root / "course" / "course.yaml")  # in which 1:30 is no number of minutes
        lectures = Course.model_validate(plain).lectures
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ["course.yaml", *first["loc"]]))
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
    taken: set[str] = set()
    asked: set[str] = set()
    for lecture in lectures:
        for name in lecture.notebooks:
            file = root / "notebooks" / f"{name}.ipynb"
            if name in taken:
                raise ValueError(f"course.yaml: {name} is in two lectures: its students would get it twice")
            if not file.is_file():
                raise ValueError(f"course.yaml: lecture {lecture.number} names {name}, which notebooks/ does not hold")
            taken.add(name)
            asked |= set(asked_in(file))
    if wrong := asked ^ {id for lecture in lectures for id, _ in lecture.minutes()}:
        raise ValueError(
            f"course.yaml: its lectures and their notebooks differ in exercise {min(wrong)}: "
            "give each of them its minutes, under exercises, homework or optional"
        )
    return lectures


def build(out: Path, root: Path = ROOT) -> None:
    """Write OUT/student and OUT/teacher; those that were there go to OUT/before. Nothing changes where this fails.

    Raises ValueError where the course or a notebook is not ready to be handed out.
    """
    lectures = load(root)
    draft, before = out / "draft", out / "before"
    shutil.rmtree(draft, ignore_errors=True)
    _library(root / "prehab_lib", draft / "student" / "prehab_lib")
    for source in (root / name for name in HANDED_OUT):
        if source.is_dir():
            shutil.copytree(source, draft / "student" / source.name)
        elif source.is_file():
            shutil.copy(source, draft / "student")
    for folder in ("student", "teacher"):  # the tables that notebooks quote
        shutil.copytree(root / "figures", draft / folder / "figures", ignore=shutil.ignore_patterns("*.png"))
    page = (root / "course" / "students.md").read_text(encoding="utf-8")
    _write(draft / "student" / "README.md", page.replace("<!-- lectures -->", table(lectures, "notebooks/")))
    for file in sorted((root / "notebooks").glob("[0-9][0-9]*_*.ipynb")):
        _write(draft / "student" / "notebooks" / file.name, _json(students(file)))
        _write(draft / "teacher" / file.name, _json(teachers(file, lectures)))
    for lecture in lectures:
        _write(draft / "teacher" / f"lecture{lecture.number}.md", plan(lecture))
    shutil.rmtree(before, ignore_errors=True)
    before.mkdir()
    for name in ("student", "teacher"):
        if (out / name).exists():
            (out / name).rename(before / name)
        (draft / name).rename(out / name)
    draft.rmdir()


def _library(library: Path, target: Path) -> None:
    """A copy of the library, with answers in the place of solutions."""
    shutil.copytree(library, target, ignore=shutil.ignore_patterns("__pycache__", "ex[0-9][0-9].*"))
    numbered: dict[str, dict[str, AnswerKey]] = {}  # 02 and 02b share a file
    for file in sorted((library.parent / "notebooks").glob("[0-9][0-9]*_*.ipynb")):
        for id in asked_in(file):
            numbered.setdefault(f"ex{file.name[:2]}", {})[id] = AnswerKey.of(solved(id))
    for name, keys in numbered.items():
        _write(target / "exercises" / f"{name}.json", as_json(keys))


def as_json(keys: dict[str, AnswerKey]) -> str:
    """Keys by id, as `checks.read` takes them."""
    content = {id: {name: encode(part) for name, part in vars(key).items()} for id, key in keys.items()}
    return _json(content)


def students(file: Path) -> dict:
    """The notebook with no word on where solutions are. Raises ValueError where an exercise is not blank."""
    notebook = _without_pointers(file)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if "olutions" in source:
                raise ValueError(f"{file.stem}: a text cell tells students of solutions: {source[:80]!r}")
        elif (call := CALL.search(source)) and not STUB.search(source):
            raise ValueError(
                f"{file.stem}: exercise {call[1]} is not blank: its function must be a docstring and ... alone"
            )
    return notebook


def teachers(file: Path, lectures: list[Lecture]) -> dict:
    """The notebook with each solution folded in behind its exercise: why, the usual slips, minutes, the cells."""
    notebook = _without_pointers(file)
    if not asked_in(file):
        return notebook
    reasons, code, imports = _by_exercise(file.parent / "solutions" / file.name)
    if missing := set(asked_in(file)) - reasons.keys():
        raise ValueError(f"solutions/{file.name} has no text cell that begins with **{min(missing)}**: write one")
    cells = []
    for cell in notebook["cells"]:
        cells.append(cell)
        call = CALL.search("".join(cell["source"])) if cell["cell_type"] == "code" else None
        if call is None:
            continue
        mark = f"solution-{call[1].replace('.', '-')}"
        cells.append(
            {"cell_type": "markdown", "id": mark, "metadata": {}, "source": _note(call[1], reasons[call[1]], lectures)}
        )
        for number, solution in enumerate([*imports, *code[call[1]]], 1):
            cells.append(_hidden(solution, f"{mark}-{number}"))
        imports = []  # once, before the first solution
    notebook["cells"] = cells
    return notebook


def _without_pointers(file: Path) -> dict:
    notebook = content(file)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = POINTS_AT_SOLUTIONS.sub("", "".join(cell["source"]))
    return notebook


def _by_exercise(file: Path) -> tuple[dict[str, str], dict[str, list[dict]], list[dict]]:
    """Of a notebook of solutions: exercise -> the text before it, exercise -> its cells; and the cells of imports."""
    reasons: dict[str, str] = {}
    code: dict[str, list[dict]] = {}
    imports: list[dict] = []
    below = imports
    for cell in content(file)["cells"]:
        source = "".join(cell["source"])
        start = re.match(r"\*\*(\d+\.\d+)\*\* ", source)
        if cell["cell_type"] == "markdown" and start:
            reasons[start[1]] = source[start.end() :].strip()
            below = code[start[1]] = []
        elif below is not imports or cell["cell_type"] == "code":
            below.append(cell)
    return reasons, code, imports


def _hidden(cell: dict, id: str) -> dict:
    """A cell folded in JupyterLab. Its count is left out: it ran in another notebook."""
    if cell["cell_type"] != "code":
        return cell | {"id": id, "metadata": {}}
    outputs = [out | {"execution_count": None} if "execution_count" in out else out for out in cell["outputs"]]
    metadata = {"jupyter": {"source_hidden": True}}
    return cell | {"id": id, "metadata": metadata, "execution_count": None, "outputs": outputs}


def _note(id: str, why: str, lectures: list[Lecture]) -> str:
    """The teacher's notes on an exercise, closed until they are clicked."""
    minutes = dict(pair for lecture in lectures for pair in lecture.minutes())[id]
    slips = "\n".join(f"- {hint}" for _, hint in solved(id).slips)
    return (
        f"<details>\n<summary><b>Solution of {id}</b>: {minutes}; the cells below hold it</summary>\n\n"
        f"{why}\n\n**Slips that the check names:**\n\n{slips}\n\n</details>"
    )


def table(lectures: list[Lecture], links: str) -> str:
    """Lectures as a Markdown table. links: folder of the notebooks."""
    lines = ["| lecture | title | notebooks | exercises in class (minutes) | at home |", "|---|---|---|---|---|"]
    for lecture in lectures:
        books = "; ".join(f"[{name}]({links}{name}.ipynb), {part}" for name, part in lecture.notebooks.items())
        lines.append(
            f"| {lecture.number} | {lecture.title} | {books} | {_listed(lecture.exercises)} | {_listed(lecture.homework)} |"
        )
    return "\n".join(lines)


def _listed(minutes: dict[str, int]) -> str:
    return ", ".join(f"{id} ({number})" for id, number in minutes.items()) or "none"


def plan(lecture: Lecture, level: int = 1) -> str:
    """One lecture as a Markdown page: what it needs, minute by minute, what to ask."""
    lines = [f"{'#' * level} Lecture {lecture.number}: {lecture.title}", "", "**Afterwards students can**", ""]
    lines += [f"- {goal}" for goal in lecture.goals]
    lines += ["", f"**They come with** {'; '.join(lecture.prerequisites)}.", "", "| minute | what |", "|---|---|"]
    minute = 0
    for step in lecture.plan:
        lines.append(f"| {minute}–{minute + step.minutes} | {step.what} |")
        minute += step.minutes
    lines += ["", "**Ask the class**", ""]
    lines += [f"- *{question.ask}* {question.answer}" for question in lecture.questions]
    if lecture.homework:
        besides = f" And {lecture.besides}." * bool(lecture.besides)
        lines += ["", f"**At home** (minutes): {_listed(lecture.homework)}.{besides}"]
    if lecture.optional:
        lines += ["", f"**For who wants more** (minutes): {_listed(lecture.optional)}."]
    return "\n".join(lines) + "\n"


def guide(text: str, lectures: list[Lecture]) -> str:
    """course/README.md with its part on the lectures written anew. Raises ValueError where the marks are missing."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"course/README.md needs the lines {START} and {END}, once each, around its lectures")
    pages = "\n".join(plan(lecture, level=3) for lecture in lectures)
    number = sum(len(lecture.minutes()) for lecture in lectures)
    text, places = COUNTED.subn(str(number), text)
    if places != 1:
        raise ValueError("course/README.md has to say once how many exercises that check themselves there are")
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n\n{table(lectures, '../notebooks/')}\n\n{pages}\n{END}{after}"


def _json(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def main(root: Path = ROOT, words: tuple[str, ...] = ()) -> int:
    if words:
        print(f"course: {words[0]!r} says nothing here: it is built without arguments", file=sys.stderr)
        return 2
    try:
        readme = root / "course" / "README.md"
        page = guide(readme.read_text(encoding="utf-8"), load(root))
        build(root / "course" / "_build", root)
        readme.write_text(page, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"course: {error}", file=sys.stderr)
        return 2
    print(
        "written: course/_build/student (hand this folder out) and course/_build/teacher; the guide is course/README.md"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(words=tuple(sys.argv[1:])))
