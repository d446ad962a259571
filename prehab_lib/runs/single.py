"""One run of a plan file: `python -m prehab_lib one PLAN.json NAME`, what an engine starts on
whatever machine it chose.

A plan file comes from `python -m prehab_lib plan PROFILE --json PLAN.json`. The store is the only
cache: a run that is stored is published and not run again, whoever ran it. `cluster/Snakefile` asks
`settle` what is left.
"""

import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prehab_lib.runs import launch, machine, plan
from prehab_lib.runs.store import Store, no_space

SCHEDULED = (
    "SLURM_JOB_ID",
    "KUBERNETES_SERVICE_HOST",
)  # there a scheduler has given this process its GPUs
LOOK = 0.1  # seconds between two looks at the run and at the parent


@dataclass(frozen=True)
class State:
    """What the store has of a run: "stored", "failed" (when it was last tried), "skipped" (what it
    needs failed), "missing".
    """

    status: str
    key: str = ""
    why: str = ""


def add_to(commands) -> None:
    """The subcommand's arguments."""
    command = commands.add_parser(
        "one", help="execute one run of a plan file; what it needs must be stored already"
    )
    command.add_argument(
        "plan", type=Path, metavar="PLAN.json", help="written by plan PROFILE --json PLAN.json"
    )
    command.add_argument("name", metavar="NAME", help="a run's name, as the plan has it")
    command.add_argument(
        "--parent", type=int, metavar="PID", help="end when this process, which started it, does"
    )
    command.set_defaults(
        act=lambda arguments: one(arguments.plan, arguments.name, arguments.parent)
    )


def read(file: Path, home: Path) -> list[plan.Run]:
    """The runs of a plan file, each after what it needs.

    Raises FileNotFoundError where there is no such file, ValueError for one that is no plan of this
    repository.
    """
    how = f"write it with python -m prehab_lib plan PROFILE --json {file}"
    if not file.is_file():
        raise FileNotFoundError(f"there is no plan {file}: {how}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{file} is no JSON: {how}") from None
    return plan.from_data(data, home)


def states(store: Store, runs: list[plan.Run]) -> dict[str, State]:
    """Name -> what the store has of each run of a plan. Nothing is started or written."""
    found: dict[str, State] = {}
    for run in runs:
        needs = {name: found[name] for name in run.needs}
        stopped = [name for name, state in needs.items() if state.status in ("failed", "skipped")]
        if stopped:
            found[run.name] = State("skipped", why=f"it needs {stopped[0]}")
        elif any(state.status == "missing" for state in needs.values()):
            found[run.name] = State("missing")
        else:
            found[run.name] = _state(store, run, {name: state.key for name, state in needs.items()})
    return found


def _state(store: Store, run: plan.Run, needs: dict[str, str]) -> State:
    key = launch.key_of(store, run, needs)
    if store.done(key).exists():
        return State("stored", key)
    if (facts := store.failed(key) / "run.json").is_file():
        return State("failed", key, json.loads(facts.read_text(encoding="utf-8"))["error"] or "")
    return State("missing", key)


def stamp_folder(store: Store, file: Path) -> Path:
    """Where the stamps of a plan file lie. Its path tells, not its content, which holds prices that
    change.
    """
    return store.runs / ".batch" / hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]


def alone(folder: Path, file: Path):
    """The lock of an engine on a plan file, held until it is released or this process ends, however
    it does.

    Raises ValueError while another engine has it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another engine is at work on {file}: wait for it, or write another plan"
        ) from None
    return lock


def stamp(folder: Path, name: str) -> Path:
    """The file that tells Snakemake that a run is done. No comma: its command line separates
    wildcards by commas.
    """
    return folder / f"{name.replace(',', '@')}.done"


def settle(store: Store, runs: list[plan.Run], folder: Path) -> dict[str, State]:
    """Make the stamps in a folder say what the store says, and publish what is stored; returns the
    states.

    A stamp of a run that is no longer stored under its key of today goes: code, parameters or an
    upstream result changed.
    """
    store.sweep()
    found = states(store, runs)
    folder.mkdir(parents=True, exist_ok=True)
    good = [run for run in runs if found[run.name].status == "stored"]
    for run in good:
        store.publish(found[run.name].key, run.profile, run.name)
        stamp(folder, run.name).touch()
        os.utime(
            stamp(folder, run.name), (1, 1)
        )  # all equally old: none looks newer than what was made from it
    for stale in set(folder.glob("*.done")) - {stamp(folder, run.name) for run in good}:
        stale.unlink()
    return found


def summary(store: Store, runs: list[plan.Run]) -> list[str]:
    """Closing lines: how many runs are stored, and each that is not, with the reason."""
    found = states(store, runs)
    lines = [
        f"{sum(state.status == 'stored' for state in found.values())} of {len(runs)} runs are stored"
    ]
    for run in runs:
        state = found[run.name]
        if state.status == "failed":
            lines.append(f"  failed: {run.name}: {state.why}{_where(store, state.key)}")
        elif state.status != "stored":
            lines.append(f"  {state.status}: {run.name}{': ' * bool(state.why)}{state.why}")
    return lines


def _where(store: Store, key: str) -> str:
    kept = next(store.failed(key).glob("*.ipynb"), None)
    return f" (see {os.path.relpath(kept)})" if kept else ""


@contextmanager
def device(store: Store, run: plan.Run):
    """The name of a GPU for a run, None where it asks for none or there is none.

    Under a scheduler it is the one given to this job. Elsewhere it is the first that no other
    single run has; a lock says so, and goes with this process.
    """
    seen = machine.gpus() if run.gpu else []
    if not seen or any(name in os.environ for name in SCHEDULED):
        yield seen[0] if seen else None
        return
    from filelock import Timeout

    while True:
        for name in seen:
            try:
                with store.lock(f"gpu-{socket.gethostname()}-{name}").acquire(timeout=0):
                    yield name
                    return
            except Timeout:
                continue
        time.sleep(LOOK)


def one(file: Path, name: str, parent: int | None = None, home: Path | None = None) -> int:
    """Execute and publish a run of a plan. Returns 0, also where it was stored before, or 1 where
    it failed.

    parent: the process that started this one; when it is gone, this one ends and its kernel with
    it. Raises ValueError for a name that the plan has not, or a run whose needs are not stored;
    OSError where the disk is full.
    """
    home = home or plan.home()
    runs, store = read(file, home), Store(home / "runs")
    by_name = {run.name: run for run in runs}
    if name not in by_name:
        raise ValueError(f'{file} has no run "{name}": it has {", ".join(by_name)}')
    run, key = by_name[name], _ready(store, runs, name)
    if not store.done(key).exists():
        outcome = _execute(store, run, key, parent)
        if outcome.status == "full":
            raise no_space(store.runs)
        if outcome.status == "failed":
            print(
                f"failed    {name} after {outcome.seconds:.0f} s: {outcome.error}{_where(store, key)}",
                flush=True,
            )
            return 1
        if outcome.status == "ran":
            print(
                f"finished  {name} in {outcome.seconds:.0f} s, {outcome.peak_memory_mb} MB",
                flush=True,
            )
            store.publish(key, run.profile, name)
            return 0
    print(f"stored    {name}", flush=True)
    store.publish(key, run.profile, name)
    return 0


def _ready(store: Store, runs: list[plan.Run], name: str) -> str:
    """The key of a run whose needs are all stored; they are published, for its notebook reads them
    there.
    """
    wanted = _chain(runs, name)
    found = states(store, wanted)
    for run in wanted[:-1]:
        if found[run.name].status != "stored":
            raise ValueError(f"{name} needs {run.name}, which is not stored: run that first")
        store.publish(found[run.name].key, run.profile, run.name)
    return found[name].key


def _chain(runs: list[plan.Run], name: str) -> list[plan.Run]:
    """A run and all that it needs, directly or not, in the plan's order."""
    by_name, pending, wanted = {run.name: run for run in runs}, [name], set()
    while pending:
        current = pending.pop()
        wanted.add(current)
        pending += by_name[current].needs
    return [run for run in runs if run.name in wanted]


def _execute(store: Store, run: plan.Run, key: str, parent: int | None) -> launch.Outcome:
    """Start the run's process and wait for it, looking at the parent too."""
    log = store.log(run.profile, run.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    if store.held(key):
        print(f"waiting   {run.name}: {store.holder(key)} works on it", flush=True)
    else:
        log.unlink(missing_ok=True)
    with device(store, run) as gpu, tempfile.TemporaryFile() as out, log.open("a+b") as err:
        print(
            f"started   {run.name} on {socket.gethostname()} with {run.threads} threads", flush=True
        )
        process = launch.start(store, run, key, run.threads, gpu, out, err)
        try:
            while process.poll() is None:
                if parent is not None and os.getppid() != parent:
                    print(
                        f"prehab_lib: what started {run.name} is gone, so it ends too",
                        file=sys.stderr,
                    )
                    os._exit(1)  # its process and its kernel go with this one
                time.sleep(LOOK)
        finally:
            launch.end(process)
        return launch.outcome(process, key, out, err)
