"""The command line: `python -m prehab_lib run | plan | report | figures | verdicts | data |
compress | one`.
"""

import argparse
import sys

from prehab_lib.cli import compress_cli
from prehab_lib.runs.store import FULL, Store

PROFILES = "smoke, laptop, lab, paper, or any other with params/NN_name.PROFILE.yaml"


def _assignment(text: str) -> tuple[str, object]:
    """`name=value` of -p and --grid, the value read as YAML."""
    import yaml

    from prehab_lib.tasks.parameters import load_value

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"write name=value, not {text!r}")
    try:
        return name.strip(), load_value(value)
    except (yaml.YAMLError, ValueError):
        raise argparse.ArgumentTypeError(f"{name.strip()}: {value!r} is not a YAML value") from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give a whole number, 1 or more, not {text!r}")
    return int(text)


def _axes(pairs: list[tuple[str, object]]) -> dict:
    """The grid of the command line. Raises ValueError for a parameter given twice."""
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"--grid {twice[0]} is given twice: write all its values in one list")
    return dict(pairs)


def planned(arguments) -> list:
    """The runs that the arguments of `run`, `plan` or `one` choose."""
    from prehab_lib.runs import plan

    overrides, axes = dict(arguments.p), _axes(arguments.grid)
    chosen = (arguments.profile, arguments.notebooks, overrides, axes, arguments.threads)
    return plan.runs(plan.home(), *chosen)


def _run(arguments) -> int:
    from prehab_lib import run
    from prehab_lib.runs import plan

    return run.main(planned(arguments), arguments.j, plan.home())


def _plan(arguments) -> int:
    from prehab_lib import run
    from prehab_lib.runs import plan

    print(run.table(planned(arguments), Store(plan.home() / "runs")))
    return 0


def _one(arguments) -> int:
    from prehab_lib import run
    from prehab_lib.runs import kernel, plan

    if arguments.parent:
        kernel.die_with(arguments.parent)
    return run.one(planned(arguments), arguments.name, plan.home())


def _report(arguments) -> int:
    from prehab_lib.report import report

    print(f"written: {report.write(arguments.profile)}")
    return 0


def _figures(arguments) -> int:
    from prehab_lib.report import report

    count, folder = report.copy_figures(arguments.profile)
    print(f"{count} files copied to {folder}")
    return 0


def _verdicts(arguments) -> int:
    from prehab_lib.report import audit

    print(f"written: {audit.write(arguments.profile)}")
    return 0


def _data(arguments) -> int:
    from prehab_lib.runs import needed

    print("\n".join(needed.lines(arguments.profile, arguments.data_root)))
    return 0


def _argument(*names: str, **options) -> tuple[tuple[str, ...], dict]:
    """What `add_argument` is given."""
    return names, options


def _profile_or(default: str) -> tuple[tuple[str, ...], dict]:
    return _argument("profile", nargs="?", default=default, help=f"{PROFILES} ({default})")


PAIR = {"type": _assignment, "action": "append", "default": []}
VALUES = "a run for each value, [0.01,0.1,1] or 0..4; several make every combination"
CORES = "of every run (default: half of this machine's cores, or those of each GPU)"
DATA = "folder holding the data sets (default: PREHAB_DATA)"
PROFILE = _argument("profile", help=PROFILES)
CHOICE = [  # which runs
    PROFILE,
    _argument("notebooks", nargs="*", metavar="NN", help="03 or 03_vit; none: all"),
    _argument("-p", metavar="name=value", help="replace a parameter (repeatable)", **PAIR),
    _argument("--grid", metavar="name=values", help=VALUES, **PAIR),
    _argument("--threads", type=_count, metavar="N", help=CORES),
]
WIDTH = _argument("-j", type=_count, default=2, metavar="N", help="runs at a time (default 2)")
NAME = _argument("--name", required=True, help="the run, as plan PROFILE lists it")
PARENT = _argument("--parent", type=_count, metavar="PID", help="end when this parent does")
FOLDER = _argument("--data-root", metavar="FOLDER", help=DATA)
COMMANDS = {  # name: what it does, how, its arguments
    "run": ("execute notebooks; what is stored is not run again", _run, [*CHOICE, WIDTH]),
    "plan": ("list the runs of a profile, and which are stored", _plan, CHOICE),
    "report": ("gather a profile's results beside the paper's", _report, [PROFILE]),
    "figures": ("copy runs/PROFILE/figures to figures/PROFILE", _figures, [PROFILE]),
    "verdicts": ("write what became of the paper's claims", _verdicts, [_profile_or("laptop")]),
    "data": ("what each notebook needs, and what is missing", _data, [_profile_or("lab"), FOLDER]),
    "one": ("execute one run, for schedulers", _one, [*CHOICE, NAME, PARENT]),
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.act(arguments)` does what was asked for."""
    top = argparse.ArgumentParser(prog="python -m prehab_lib", description=__doc__.split(":")[0])
    commands = top.add_subparsers(dest="command", required=True)
    for name, (text, act, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        for names, options in arguments:
            command.add_argument(*names, **options)
        command.set_defaults(act=act)
    compress_cli.add_to(commands)
    return top


def main(words: list[str] | None = None) -> int:
    """Exit code: 0, 1 where a run failed, 2 for an error of the user's (one sentence on stderr),
    130 on Ctrl-C.
    """
    arguments = parser().parse_args(words)
    try:
        return arguments.act(arguments)
    except KeyboardInterrupt:
        print("prehab_lib: stopped; the same command resumes with what is missing", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ConnectionError, PermissionError) as error:
        sentence = str(error)
        if isinstance(error, OSError) and error.strerror:  # without its number
            sentence = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or "the disk"
        sentence = f"no space left on {where}: free some and run the same command again"
    print(f"prehab_lib: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
