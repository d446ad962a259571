"""`python -m prehab_lib course` and `grade FOLDER`: the course's folders, and the report on what
was handed in.
"""

import argparse
from pathlib import Path


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"give a number above 0, not {text!r}")
    return value


def add_to(commands) -> None:
    """The subcommands' arguments.  Imports nothing heavy."""
    build = commands.add_parser(
        "course", help="write course/_build: folders for students and teacher"
    )
    build.set_defaults(act=_build)
    grade = commands.add_parser(
        "grade", help="which exercises pass, student by student, as CSV; no security sandbox"
    )
    grade.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="a folder a student, or notebooks named after students",
    )
    grade.add_argument(
        "--out",
        type=Path,
        default=Path("report.csv"),
        metavar="FILE",
        help="the report (report.csv)",
    )
    grade.add_argument(
        "--notebooks",
        nargs="+",
        default=[],
        metavar="NN",
        help="01 or 01_surrogates; all if none is named",
    )
    grade.add_argument(
        "--seconds",
        type=_positive,
        default=60.0,
        help="for each exercise, its imports included (60)",
    )
    grade.add_argument(
        "--memory",
        type=_positive,
        default=4.0,
        metavar="GB",
        help="of a submission's process (4; Linux)",
    )
    grade.add_argument(
        "--whole",
        action="store_true",
        help="run all cells of a notebook, not only what the answers need",
    )
    grade.add_argument("-j", type=int, default=2, metavar="N", help="submissions at a time (2)")
    grade.set_defaults(act=_grade)


def _build(arguments) -> int:
    from prehab_lib import course, course_build, course_pages
    from prehab_lib.runs import plan

    root = plan.home()
    out = course_build.build(root)
    guide = root / "course" / "README.md"
    guide.write_text(
        course_pages.guide(guide.read_text(encoding="utf-8"), course.load(root)), encoding="utf-8"
    )
    shown = out.relative_to(root).as_posix()
    print(
        f"written: {shown}/student (hand this folder out) and {shown}/teacher; the guide is course/README.md"
    )
    return 0


def _grade(arguments) -> int:
    from prehab_lib import course, grading
    from prehab_lib.runs import plan

    if arguments.j < 1:
        raise ValueError(
            f"-j {arguments.j}: give a whole number of submissions at a time, 1 or more"
        )
    if not arguments.out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{arguments.out}: there is no such folder to write the report to")
    root = plan.home()
    files = {
        name: plan.notebooks(root)[name]
        for lecture in course.load(root).lectures
        for name in lecture.notebooks
    }
    limits = grading.Limits(
        seconds=arguments.seconds, memory_gb=arguments.memory, whole=arguments.whole
    )
    chosen = _chosen(files, arguments.notebooks)
    others = files.keys() - chosen.keys()
    rows = grading.grade(
        arguments.folder,
        arguments.out,
        chosen,
        limits,
        arguments.j,
        lambda line: print(line, flush=True),
        others,
    )
    students = len({row.student for row in rows})
    passed = sum(row.verdict == grading.PASSED for row in rows)
    plural = "" if students == 1 else "s"
    print(
        f"{students} student{plural}, {passed} of {len(rows)} exercises passed; written: {arguments.out}"
    )
    return 0


def _chosen(files: dict[str, Path], wanted: list[str]) -> dict[str, Path]:
    known = {
        name: file
        for name, file in files.items()
        if not wanted or name in wanted or name[:2] in wanted
    }
    if unknown := [
        name for name in wanted if name not in files and name not in {one[:2] for one in files}
    ]:
        raise ValueError(
            f"{unknown[0]!r} is no notebook of the course: choose among {', '.join(files)}"
        )
    return known
