"""`python -m prehab_lib plan PROFILE`: the runs, what each needs and takes, and in all; and the
words that `run` shares.
"""

import argparse
from pathlib import Path

PROFILES = "smoke, laptop, lab, paper, or any other with params/NN_name.PROFILE.yaml"
COLUMNS = ("run", "threads", "GPU", "minutes", "memory", "GPU memory", "from", "needs")


def assignment(text: str) -> tuple[str, object]:
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


def axes(pairs: list[tuple[str, object]]) -> dict | None:
    """The grid of the command line. Raises ValueError for a parameter given twice."""
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--grid {twice[0]} is given twice: write all its values in one list")
    return dict(pairs) or None


def count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"give a whole number, 1 or more, not {text!r}")
    return int(text)


def add_choice(command) -> None:
    """The arguments that say which runs: of `run` and of `plan`."""
    command.add_argument("profile", help=PROFILES)
    command.add_argument(
        "notebooks", nargs="*", metavar="NN", help="03 or 03_vit; all where none is named"
    )
    command.add_argument(
        "-j",
        type=count,
        default=2,
        metavar="N",
        help="at most this many runs at a time (default 2)",
    )
    repeatable = dict(type=assignment, action="append", default=[])
    command.add_argument(
        "-p",
        **repeatable,
        metavar="name=value",
        help="replace a parameter, or all its values in a grid (repeatable)",
    )
    told = "a run for each value, [0.01,0.1,1] or 0..4; several make every combination"
    command.add_argument("--grid", **repeatable, metavar="name=values", help=told)
    command.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="of every run (default: half of this machine's cores, or the cores that each GPU has)",
    )


def add_to(commands) -> None:
    """The subcommand `plan`."""
    command = commands.add_parser(
        "plan", help="what `run` would do: its runs, needs, minutes and memory"
    )
    add_choice(command)
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write the plan as data, for `one` and cluster/"
    )
    command.set_defaults(act=show)


def show(arguments) -> int:
    """Print the plan, and write it where a file is named."""
    from prehab_lib.report.records import write_json
    from prehab_lib.runs import launch, plan, priced
    from prehab_lib.runs.slots import Slots
    from prehab_lib.runs.store import Store

    if arguments.json and not arguments.json.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {arguments.json.parent} to write {arguments.json.name} to: make it"
        )
    home = plan.home()
    chosen = (list(arguments.notebooks), dict(arguments.p), axes(arguments.grid), arguments.threads)
    planned = priced.priced(plan.runs(home, arguments.profile, *chosen), home)
    stored = launch.stored(Store(home / "runs"), planned)
    print("\n".join(table(planned)))
    devices = None if any(run.gpu for run in planned) else []
    print(f"{arguments.profile}: {priced.total(planned, stored, Slots(arguments.j, gpus=devices))}")
    if arguments.json:
        write_json(arguments.json, plan.as_data(planned))
        print(f"written: {arguments.json}")
    return 0


def table(planned: list) -> list[str]:
    """A line for each run, under a heading; "?" for what nobody knows."""
    rows = [COLUMNS, *map(_row, planned)]
    wide = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    right = range(1, 6)  # the numbers
    return [
        "  ".join(
            text.rjust(wide[column]) if column in right else text.ljust(wide[column])
            for column, text in enumerate(row)
        ).rstrip()
        for row in rows
    ]


def _row(run) -> tuple[str, ...]:
    price = run.price
    on_gpu = "?" if price.gpu_memory_gb is None else f"{price.gpu_memory_gb:.1f} GB"
    return (
        run.name,
        str(run.threads),
        str(run.gpu),
        "?" if price.minutes is None else f"{price.minutes:.1f}",
        "?" if price.memory_mb is None else f"{price.memory_mb:,.0f} MB",
        on_gpu if run.gpu else "",
        price.source,
        "all others" if run.last else ", ".join(run.needs),
    )
