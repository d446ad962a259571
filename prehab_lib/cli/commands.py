"""The words of the command line: its commands and their options."""

import argparse
import re
from collections.abc import Callable

from prehab_lib.cli import compress_cli


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"give a whole number from 1 to 999999, not {text[:20]!r}")
    return int(text)


COMMANDS = {
    "run": "execute notebooks; what is stored is not run again",
    "plan": "list the runs of a profile, and which are stored",
    "one": "execute one run, for schedulers",
    "report": "gather a profile's results beside the paper's",
    "figures": "copy runs/PROFILE/figures to figures/PROFILE",
    "verdicts": "write what became of the paper's claims (in the profile laptop)",
    "data": "what each notebook needs (for the profile lab), and what is missing",
}
# The other commands want a profile named.
DEFAULTS = {"verdicts": "laptop", "data": "lab"}


def parser(act: Callable, about: str) -> argparse.ArgumentParser:
    """The parser of all commands; `arguments.act(arguments)` does what was asked for.

    act: does it for all but `compress`.  about: what the program is.
    """
    top = argparse.ArgumentParser(prog="python -m prehab_lib", description=about)
    commands = top.add_subparsers(dest="command", required=True)
    profiles = "smoke, laptop, lab, paper, or any other with params/NN_name.PROFILE.yaml"
    values = "a run for each value, [0.01,0.1,1] or 0..4; several make every combination"
    cores = "of every run (default: half of this machine's cores, or those of each GPU)"
    pair = {"type": compress_cli.assignment, "action": "append", "default": []}
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        command.set_defaults(act=act)
        add = command.add_argument
        nargs = "?" if name in DEFAULTS else None
        add("profile", nargs=nargs, default=DEFAULTS.get(name), help=profiles)
        if name in ("run", "plan", "one"):
            add("notebooks", nargs="*", metavar="NN", help="03 or 03_vit; none: all")
            add("-p", metavar="name=value", help="replace a parameter (repeatable)", **pair)
            add("--grid", metavar="name=values", help=values, **pair)
            add("--threads", type=_count, metavar="N", help=cores)
        if name == "run":
            add("-j", type=_count, default=2, metavar="N", help="runs at a time (default 2)")
        elif name == "one":
            add("--name", required=True, help="the run, as plan PROFILE lists it")
            add("--parent", type=_count, metavar="PID", help="end when this parent does")
        elif name == "data":
            add("--data-root", metavar="FOLDER", help="holds the data sets (default: PREHAB_DATA)")
    compress_cli.add_to(commands)
    return top
