"""The command line: `python -m prehab_lib COMMAND`, which is `compress` or one of COMMANDS."""

import os
import sys
from functools import partial

from prehab_lib.cli import commands
from prehab_lib.runs.store import FULL, READ_ONLY, Store


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
    from prehab_lib.runs import listed, plan, unit

    if arguments.command == "data":
        print(listed.needed(arguments.profile, arguments.data_root))
        return 0
    if arguments.command == "one" and arguments.parent:
        unit.die_with(arguments.parent)
    runs, store = listed.planned(arguments), Store(plan.home() / "runs")
    if arguments.command == "run":
        return run.main(runs, store, arguments.j)
    if arguments.command == "one":
        return run.one(runs, store, arguments.name)
    print(listed.table(runs, store))
    if arguments.profile == "paper":
        from prehab_lib.report import forecast  # imports torch and transformers

        print(forecast.table(runs))
    return 0


parser = partial(commands.parser, _act, __doc__.split(":")[0])


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
