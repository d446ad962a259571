"""A profile through Snakemake: its plan, its runs, what comes last (also after failures), the report.

    python cluster/run.py laptop local -- --cores 2
    python cluster/run.py lab slurm -p data_root=/data --threads 8 -- --set-resources run_on_gpu:mem_mb=64000

The first word is a profile, the second an engine: a folder beside this file, or any folder with a Snakemake profile. Words
after them go to `python -m prehab_lib plan`, words after -- to Snakemake. Exit code: 0, 1 where a run failed, 2 for a bad word.
"""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from prehab_lib.runs import plan, single
from prehab_lib.runs.kernel import die_with
from prehab_lib.runs.store import Store

HERE = Path(__file__).resolve().parent


def call(*words) -> int:
    """Run a command of this Python's; on Linux it dies with this process."""
    with subprocess.Popen([sys.executable, "-m", *words], preexec_fn=partial(die_with, os.getpid())) as process:
        return process.wait()


def engine(word: str) -> Path:
    """The folder of a Snakemake profile. Raises ValueError where there is none."""
    for folder in (HERE / word, Path(word)):
        if (folder / "config.yaml").is_file():
            return folder
    known = sorted(file.parent.name for file in HERE.glob("*/config.yaml"))
    raise ValueError(f"no engine {word!r}: choose {', '.join(known)}, or a folder with a config.yaml")


def main(words: list[str]) -> int:
    mark = words.index("--") if "--" in words else len(words)
    if mark < 2 or words[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    (profile, chosen, *planning), options = words[:mark], words[mark + 1 :]
    folder, home = engine(chosen), plan.home()
    store, file = Store(home / "runs"), home / "runs" / f"{profile}.plan.json"
    stamps = single.stamp_folder(store, file)
    plan.check_profile(home, profile)
    lock = single.alone(stamps, file)  # a plan that an engine works on is not rewritten
    try:
        if code := call("prehab_lib", "plan", profile, *planning, "--json", str(file)):
            return code
        runs = single.read(file, home)
        found = single.settle(store, runs, stamps)
    finally:
        lock.release()
    code = 0
    for target in ("runs", "last"):
        wanted = [run.name for run in runs if run.last == (target == "last")]
        if all(found[name].status == "stored" for name in wanted):
            continue
        snakemake = ["snakemake", "-s", str(HERE / "Snakefile"), "--workflow-profile", str(folder), *options]
        code |= call(*snakemake, "--config", f"plan={file}", "--", target) != 0
        found = single.states(store, runs)
    print("\n".join(single.summary(store, runs)), flush=True)
    return call("prehab_lib", "report", profile) or code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (ValueError, FileNotFoundError) as error:
        print(f"prehab_lib: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
