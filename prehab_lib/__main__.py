"""The command line: `python -m prehab_lib COMMAND`, which is `compress` or one of COMMANDS."""

import argparse
import os
import re
import sys

from prehab_lib.cli import compress_cli
from prehab_lib.runs.store import FULL, READ_ONLY, Store


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"give a whole number from 1 to 999999, not {text[:20]!r}")
    return int(text)


def planned(arguments) -> list:
    """The runs that the arguments of `run`, `plan` or `one` choose."""
    from prehab_lib.runs import plan

    for flag, pairs in (("-p", arguments.p), ("--grid", arguments.grid)):
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{flag} {twice[0]} is given twice: write it once")
    chosen = (arguments.notebooks, dict(arguments.p), dict(arguments.grid), arguments.threads)
    return plan.runs(plan.home(), arguments.profile, *chosen)


def _act(arguments) -> int:
    """Do what was asked for. Packages are imported here, so that --help is quick."""
    if arguments.command in ("report", "figures", "verdicts"):
        from prehab_lib.report import audit, report

        if arguments.command == "figures":
            count, place = report.copy_figures(arguments.profile)
            said = f"{count} files copied to {place}"
        else:
            write = report.write if arguments.command == "report" else audit.write
            place = write(arguments.profile)
            said = f"written: {place}"
        # It came back without an error, so what belongs there was there.
        print(said if os.access(place, os.W_OK) else f"already up to date: {place}{READ_ONLY}")
        return 0

    from prehab_lib import run
    from prehab_lib.runs import plan, unit

    if arguments.command == "data":
        print(run.needed(arguments.profile, arguments.data_root))
        return 0
    if arguments.command == "stability":
        return _stability(arguments)
    if arguments.command == "one" and arguments.parent:
        unit.die_with(arguments.parent)
    runs, store = planned(arguments), Store(plan.home() / "runs")
    if arguments.command == "run":
        return run.main(runs, store, arguments.j)
    if arguments.command == "one":
        return run.one(runs, store, arguments.name)
    print(run.table(runs, store))
    return 0


def _stability(arguments) -> int:
    """The profile with its own seeds and with others, then their statuses side by side."""
    from prehab_lib import run
    from prehab_lib.report import stability

    for shift in stability.SHIFTS:
        folder = stability.folder(shift)
        os.environ["PREHAB_CACHE"] = str(folder / "cache")
        print(f"seeds + {shift}: {os.path.relpath(folder)}", flush=True)
        if run.main(stability.shifted(planned(arguments), shift), Store(folder), arguments.j):
            return 1
    return stability.report(arguments.profile)


COMMANDS = {
    "run": "execute notebooks; what is stored is not run again",
    "plan": "list the runs of a profile, and which are stored",
    "one": "execute one run, for schedulers",
    "report": "gather a profile's results beside the paper's",
    "figures": "copy runs/PROFILE/figures to figures/PROFILE",
    "stability": "run a profile with two sets of seeds, and compare the statuses of all claims",
    "verdicts": "write what became of the paper's claims (in the profile laptop)",
    "data": "what each notebook needs (for the profile lab), and what is missing",
}
DEFAULTS = {
    "verdicts": "laptop",
    "stability": "laptop",
    "data": "lab",
}  # the other commands want a profile named


def parser() -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.act(arguments)` does what was asked for."""
    top = argparse.ArgumentParser(prog="python -m prehab_lib", description=__doc__.split(":")[0])
    commands = top.add_subparsers(dest="command", required=True)
    profiles = "smoke, laptop, lab, paper, or any other with params/NN_name.PROFILE.yaml"
    values = "a run for each value, [0.01,0.1,1] or 0..4; several make every combination"
    cores = "of every run (default: half of this machine's cores, or those of each GPU)"
    pair = {"type": compress_cli.assignment, "action": "append", "default": []}
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        command.set_defaults(act=_act)
        add = command.add_argument
        nargs = "?" if name in DEFAULTS else None
        add("profile", nargs=nargs, default=DEFAULTS.get(name), help=profiles)
        if name in ("run", "plan", "one", "stability"):
            add("notebooks", nargs="*", metavar="NN", help="03 or 03_vit; none: all")
            add("-p", metavar="name=value", help="replace a parameter (repeatable)", **pair)
            add("--grid", metavar="name=values", help=values, **pair)
            add("--threads", type=_count, metavar="N", help=cores)
        if name in ("run", "stability"):
            add("-j", type=_count, default=2, metavar="N", help="runs at a time (default 2)")
        elif name == "one":
            add("--name", required=True, help="the run, as plan PROFILE lists it")
            add("--parent", type=_count, metavar="PID", help="end when this parent does")
        elif name == "data":
            add("--data-root", metavar="FOLDER", help="holds the data sets (default: PREHAB_DATA)")
    compress_cli.add_to(commands)
    return top


def main(words: list[str] | None = None) -> int:
    """Exit code: 0, 1 where a run failed, 2 for an error of the user's, 130 on Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show λ must not end a run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = parser().parse_args(words)
    try:
        return arguments.act(arguments)
    except KeyboardInterrupt:
        print("prehab_lib: stopped; the same command resumes with what is missing", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        sentence = str(error)
        if isinstance(error, OSError) and error.errno in FULL:
            where = error.filename or "the disk"
            sentence = f"no space left on {where}: free some and run the same command again"
        elif isinstance(error, OSError) and error.strerror:  # without its number
            sentence = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    except ModuleNotFoundError as error:
        from prehab_lib.save.hub import not_installed

        sentence = not_installed(error)
    print(f"prehab_lib: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
