"""The command line: `python -m prehab_lib run | plan | report | figures | verdicts | data |
compress`.
"""

import argparse
import sys

from prehab_lib.cli import compress_cli
from prehab_lib.runs import plan_cli, single
from prehab_lib.runs.store import FULL, no_space


def _run(arguments) -> int:
    from prehab_lib import run
    from prehab_lib.runs import shard

    part = None if arguments.shard is None else shard.index(arguments.shard)
    grid = plan_cli.axes(arguments.grid)
    chosen = (arguments.notebooks, dict(arguments.p), arguments.j)
    return run.main(arguments.profile, *chosen, axes=grid, threads=arguments.threads, part=part)


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


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m prehab_lib", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser(
        "run", help="execute notebooks; what is stored already is not run again"
    )
    plan_cli.add_choice(run)
    run.add_argument(
        "--shard", metavar="i/n", help="the i-th of n parts of the plan, from 0: for job arrays"
    )
    run.set_defaults(act=_run)
    plan_cli.add_to(commands)
    report = commands.add_parser(
        "report", help="gather a profile's results beside the paper's: runs/PROFILE/report.md"
    )
    report.add_argument("profile")
    report.set_defaults(act=_report)
    figures = commands.add_parser(
        "figures", help="copy runs/PROFILE/figures to figures/PROFILE, which is committed"
    )
    figures.add_argument("profile")
    figures.set_defaults(act=_figures)
    verdicts = commands.add_parser(
        "verdicts", help="write figures/PROFILE/verdicts.md from verdicts.csv beside it"
    )
    verdicts.add_argument("profile", nargs="?", default="laptop")
    verdicts.set_defaults(act=_verdicts)
    data = commands.add_parser(
        "data", help="what each notebook needs, where it was looked for, what is missing"
    )
    data.add_argument("profile", nargs="?", default="lab")
    data.add_argument(
        "--data-root", metavar="FOLDER", help="folder holding the data sets (default: PREHAB_DATA)"
    )
    data.set_defaults(act=_data)
    compress_cli.add_to(commands)
    single.add_to(commands)
    return top


def main(words: list[str] | None = None) -> int:
    """Exit code: 0, 1 where a run failed, 2 for an error of the user's (one sentence on stderr),
    130 on Ctrl-C.
    """
    arguments = parser().parse_args(words)
    try:
        return arguments.act(arguments)
    except (ValueError, FileNotFoundError, ConnectionError, PermissionError) as error:
        print(f"prehab_lib: {_sentence(error)}", file=sys.stderr)
    except OSError as error:
        if error.errno not in FULL:
            raise
        told = "free some" in str(error)
        print(
            f"prehab_lib: {_sentence(error if told else no_space(error.filename or 'the disk'))}",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print("prehab_lib: stopped; the same command resumes with what is missing", file=sys.stderr)
        return 130
    return 2


def _sentence(error: Exception) -> str:
    """The message alone: OSError puts its number in front."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
