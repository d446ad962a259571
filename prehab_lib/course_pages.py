"""The pages of the course that are written from its data: a lecture's plan, the students' README, a
folded solution.
"""

from prehab_lib.course import Course, Lecture
from prehab_lib.exercises import Exercise

START, END = "<!-- lectures, from course.yaml: make course -->", "<!-- end of lectures -->"

STUDENTS = """# Low-rank prehab: the course

Transformers are compressed by cutting each weight down to two thin factors. *Low-Rank Prehab*
([arXiv 2512.01980](https://arxiv.org/abs/2512.01980)) promises that a short fine-tuning **before** the cut, which pulls the
weights towards low rank, makes it lose less. The course runs that experiment step by step and asks what it is that helps.
You need not have read the paper.

Notebooks to read, run and complete, and the library behind them. A folder a lecture:

{table}

## Set up, once

You need `make`, a `python3` of 3.11 or newer with `venv` (Debian and Ubuntu: `apt install python3-venv`), about 7 GB of disk and, for
the first command only, an internet connection. In this folder:

```sh
make jupyter
```

The first time it installs into `.venv` here, which takes some minutes; then JupyterLab opens in the browser. Later it opens at once,
also without a network. With conda, or where torch is installed already: `python -m pip install -e '.[vision,text,rehab,jupyter]'`, then
`python -m jupyterlab notebooks`.

On Windows use WSL, a Linux inside Windows: in PowerShell `wsl --install`, restart, open *Ubuntu* from the start menu, there
`sudo apt update && sudo apt install make python3-venv`, copy this folder into your Linux home (`cp -r /mnt/c/Users/NAME/Downloads/FOLDER ~`),
`cd` to the copy, and go on as above. Where no browser opens, open the address that the terminal shows.

**Did it work?** Open `lecture1/00_start_here.ipynb` and choose *Run*, *Run All Cells*. At the end of the page four lines must say *not tried yet*.
If a cell fails with `ModuleNotFoundError`, JupyterLab is not the one of this folder's `.venv`: close it and start it with `make jupyter`.

## Work

Open the lecture's notebook and run it from the top (*Run*, *Run All Cells*): between a quarter of a minute and a few minutes, by notebook and machine. The exercises stand at the end. Replace the
`...` in a cell, run it, and read the line it prints: *not tried yet*, *passed*, or a hint that names the likely slip. You may add cells and
functions of your own; keep the names of the functions that are asked for. An exercise that is not done stops nothing.

## Hand in

Choose *Kernel*, *Restart Kernel and Run All Cells* once more: an answer may lean on something that only this session knows, such as an import you have
deleted. Save the notebook (*File*, *Save*) under the name it has and hand in this one file. Your functions are run anew, with further cases of the same
kind, so an answer has to be right for every input, not for the shown ones alone. What counts is the function of the name that was asked for; what is printed does not.
"""


def table(course: Course, links: str | None = None) -> str:
    """Lectures as a Markdown table.  links: folder of the notebooks; None names them in their
    lecture's folder.
    """
    lines = [
        "| lecture | title | notebooks | exercises in class (minutes) | at home |",
        "|---|---|---|---|---|",
    ]
    for one in course.lectures:
        books = [
            f"[{name}]({links}/{name}.ipynb), {part}" if links else f"`{name}`"
            for name, part in one.notebooks.items()
        ]
        cells = (
            str(one.number),
            one.title,
            "; ".join(books),
            _listed(one.exercises),
            _listed(one.homework),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _listed(minutes: dict[str, int]) -> str:
    return ", ".join(f"{id} ({number})" for id, number in minutes.items()) or "none"


def for_students(course: Course) -> str:
    """README.md of the folder that is handed out."""
    lines = ["| folder | lecture | notebooks |", "|---|---|---|"]
    for one in course.lectures:
        lines.append(
            f"| `notebooks/lecture{one.number}` | {one.title} | {', '.join(one.notebooks)} |"
        )
    return STUDENTS.format(table="\n".join(lines))


def plan(lecture: Lecture, level: int = 1) -> str:
    """One lecture as a Markdown page: what it needs, minute by minute, what to ask."""
    head, minute, lines = "#" * level, 0, []
    lines += [
        f"{head} Lecture {lecture.number}: {lecture.title}",
        "",
        "**Afterwards students can**",
        "",
    ]
    lines += [f"- {goal}" for goal in lecture.goals]
    lines += ["", f"**They come with** {'; '.join(lecture.prerequisites)}.", ""]
    lines += ["| minute | what |", "|---|---|"]
    for step in lecture.plan:
        lines.append(f"| {minute}–{minute + step.minutes} | {step.what} |")
        minute += step.minutes
    lines += ["", "**Ask the class**", ""]
    lines += [f"- *{question.ask}* {question.answer}" for question in lecture.questions]
    if lecture.homework:
        lines += ["", f"**At home** (minutes): {_listed(lecture.homework)}."]
    return "\n".join(lines) + "\n"


def guide(text: str, course: Course) -> str:
    """course/README.md with its part on the lectures written anew.  Raises ValueError where the
    marks are missing.
    """
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(
            f"course/README.md needs the lines {START} and {END}, once each, around its lectures"
        )
    before, after = text.split(START)[0], text.split(END)[1]
    pages = "\n".join(plan(lecture, level=3) for lecture in course.lectures)
    return f"{before}{START}\n\n{table(course, '../notebooks')}\n\n{pages}\n{END}{after}"


def folded(id: str, why: str, lecture: Lecture, exercise: Exercise) -> str:
    """The teacher's notes on an exercise, closed until they are clicked; its solution follows as
    folded cells.
    """
    where = "in class" if id in lecture.exercises else "at home"
    slips = "\n".join(f"- {hint}" for _, hint in exercise.slips)
    return (
        f"<details>\n<summary><b>Solution of {id}</b>: {lecture.minutes[id]} minutes {where}; the cells below hold it</summary>\n\n"
        f"{why.strip()}\n\n**Slips that the check names:**\n\n{slips}\n\n</details>"
    )
