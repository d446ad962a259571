"""Where runs are kept: runs/.store has each finished run under its key, runs/PROFILE what is read.

A run works in KEY.part. Finished, the folder is renamed to KEY, one atomic step; failed, to
KEY.failed with the notebook and its traceback. So KEY exists exactly when its run is complete,
whenever anything was killed.  KEY.stages holds what a long run had done when it was killed.
"""

import errno
import filecmp
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prehab_lib.runs.certificate import replacing
from prehab_lib.runs.inputs import Contents, digest

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
# What comes of reading JSON that is torn, or another's.
DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
READ_ONLY = " (the disk is read-only)"


class Busy(ValueError):
    """Another process has it."""


def copy(targets: Mapping[Path, Path]) -> None:
    """Copy what differs, source -> target, the first one last; where not all have room, none."""
    with ExitStack() as drafts:
        for source, target in differing(targets).items():
            shutil.copyfile(source, drafts.enter_context(replacing(target)))


def differing(targets: Mapping[Path, Path]) -> dict[Path, Path]:
    """Of source -> target, those whose target has not the source's bytes."""
    rest = dict(targets)
    for source, target in targets.items():
        with suppress(OSError):
            if filecmp.cmp(source, target, shallow=False):
                del rest[source]
    return rest


def remove(path: Path) -> None:
    """Have nothing lie at a path any more: what may not be removed is renamed at least."""
    aside = path.with_name(f".{path.name}.{time.time_ns()}")
    with suppress(FileNotFoundError):
        os.rename(path, aside)
        aside.unlink() if aside.is_file() else shutil.rmtree(aside, ignore_errors=True)


class Store:
    """The folder `runs` of a repository."""

    def __init__(self, runs: Path):
        self.runs = Path(runs)
        self.folder = self.runs / ".store"
        self.contents = Contents(self.folder / "contents.json")

    def done(self, key: str) -> Path:
        return self.folder / key

    def part(self, key: str) -> Path:
        return self.folder / f"{key}.part"

    def failed(self, key: str) -> Path:
        return self.folder / f"{key}.failed"

    def stages(self, key: str) -> Path:
        """What a run that was killed had done so far; gone when the run is whole."""
        return self.folder / f"{key}.stages"

    def facts(self, folder: Path) -> dict | None:
        """What run.json says of a run that lies whole in `folder`; None for anything else.

        Whole: every file of it can be read, and has the bytes that were stored.
        """
        with suppress(*DAMAGE):
            run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            found = {name: digest(folder / name) for name in run["files"]}
            if found == run["sha256"] and run["key"] == folder.stem:
                return run
        return None

    def stored(self, key: str) -> dict | None:
        """What run.json says of a finished run; None where it has to run, again if damaged."""
        return self.facts(self.done(key))

    @contextmanager
    def hold(self, name: str, busy: str) -> Iterator[None]:
        """Keep every other process off a key or a profile until this one ends, or raise Busy."""
        if self.folder.is_dir() and not os.access(self.folder, os.W_OK):
            yield  # nobody can write there, so there is nothing to keep anybody from
            return
        if self.runs.is_symlink() and not self.runs.exists():
            lost = f"{self.runs} is a link to {os.readlink(self.runs)}, which is not there"
            raise FileNotFoundError(f"{lost}: mount that disk, or remove the link")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(self.folder / f"{name}.lock").acquire(timeout=0)
        except Timeout:
            raise Busy(busy) from None
        with held:
            yield

    def hold_run(self, key: str):
        """Keep every other process off a run. Raises Busy."""
        return self.hold(key, "another process is at work on it: come back when that has ended")

    def hold_profile(self, profile: str):
        """Keep every other driver off a profile. Raises Busy."""
        where = os.path.relpath(self.runs / profile)
        return self.hold(profile, f"another driver is at work on {where}: wait for it, or stop it")

    def begin(self, key: str) -> Path:
        """An empty work folder. Call it with the key held."""
        part = self.part(key)
        remove(part)
        part.mkdir(parents=True)
        return part

    def finish(self, key: str, good: bool) -> None:
        """Rename the work folder to what it became; an older failure goes, or what was damaged."""
        remove(self.failed(key))
        if good:
            remove(self.done(key))
            remove(self.stages(key))
        os.rename(self.part(key), self.done(key) if good else self.failed(key))

    def sweep(self) -> None:
        """Remove work folders that nobody works in: their runs were killed."""
        for part in self.folder.glob("*.part"):
            with suppress(Busy, OSError), self.hold_run(part.stem):
                remove(part)

    def results(self, profile: str) -> dict[str, bytes]:
        """Name -> facts, scores and claims of each published run but those that are `last`."""
        read = {}
        for run in sorted((self.runs / profile).glob("*/run.json")):
            files = [run, run.with_name("result.json"), run.with_name("claims.jsonl")]
            with suppress(*DAMAGE):
                if not json.loads(run.read_text(encoding="utf-8")).get("last"):
                    read[run.parent.name] = b"".join(f.read_bytes() for f in files if f.is_file())
        return read

    def targets(self, profile: str, name: str, run: dict) -> dict[str, Path]:
        """Where each file of a run is published: figures together, those of a grid's run apart."""
        own = "" if run.get("notebook", name) == name else name
        targets = {}
        for file in run.get("files", []):
            place = f"figures/{own}" if file.startswith("figures/") else name
            targets[file] = self.runs / profile / place / file.removeprefix("figures/")
        return targets

    def publish(self, key: str, profile: str, name: str) -> None:
        """Copy a finished run to runs/PROFILE, run.json last; what its predecessor left goes."""
        source, facts = self.done(key), self.runs / profile / name / "run.json"
        run, stale = json.loads((source / "run.json").read_text(encoding="utf-8")), set()
        targets = self.targets(profile, name, run)
        with suppress(*DAMAGE):  # nothing was published, or only half
            before = json.loads(facts.read_text(encoding="utf-8"))
            stale = {*self.targets(profile, name, before).values()} - {*targets.values()}
        copied = {source / file: target for file, target in targets.items()}
        if not differing(copied | {source / "run.json": facts}):
            return
        with FileLock(self.folder / ".publish.lock"):  # runs that end at once share figures/
            copy(copied)
            for target in stale:
                target.unlink(missing_ok=True)
            copy({source / "run.json": facts})
