"""Where runs are kept: runs/.store holds each finished run under its key, runs/<profile> the copies
people read and logs.

A run works in <key>.part. Finished, the folder is renamed to <key>, one atomic step; failed, to
<key>.failed with the notebook and its traceback. So <key> exists exactly when its run is complete,
whenever anything was killed.
"""

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
WORK, HOLDER = (
    "work",
    "holder.json",
)  # in a work folder: what goes before it is renamed, and in it who works there


def no_space(folder) -> OSError:
    """The error for a full disk, as one sentence."""
    return OSError(
        errno.ENOSPC, f"no space left on {folder}: free some and run the same command again"
    )


def _draft_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}")


@contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A place beside the target to write to, empty again at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield _draft_of(target)
    finally:
        _draft_of(target).unlink(missing_ok=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A file to write, which then takes the target's place: that is the old one or the new one,
    never half of it.
    """
    with _draft(target) as draft:
        yield draft
        os.replace(draft, target)


def copy(source: Path, target: Path) -> None:
    """Copy a file in one step."""
    copy_all({source: target})


def copy_all(targets: Mapping[Path, Path], stale: Collection[Path] = ()) -> None:
    """Copy files, source -> target, and remove stale ones before the last target changes.

    Where there is no room for all of them, nothing is touched.
    """
    with ExitStack() as drafts:
        for source, target in targets.items():
            shutil.copyfile(source, drafts.enter_context(_draft(target)))
        *first, last = targets.values()
        for target in first:
            os.replace(_draft_of(target), target)
        for file in stale:
            file.unlink(missing_ok=True)
        os.replace(_draft_of(last), last)


class Store:
    """The folder `runs` of a repository."""

    def __init__(self, runs: Path):
        self.runs = Path(runs)
        self.folder = self.runs / ".store"

    def done(self, key: str) -> Path:
        return self.folder / key

    def part(self, key: str) -> Path:
        return self.folder / f"{key}.part"

    def failed(self, key: str) -> Path:
        return self.folder / f"{key}.failed"

    def lock(self, name: str):
        """A lock between processes, freed by the system when its holder dies."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f"{name}.lock")

    def log(self, profile: str, name: str) -> Path:
        """What a run and its libraries print, as it comes; kept until the run is started again."""
        return self.runs / profile / "logs" / f"{name}.log"

    def held(self, key: str) -> bool:
        """Whether somebody, perhaps on another machine, works on a run now."""
        from filelock import Timeout

        try:
            with self.lock(key).acquire(timeout=0):
                return False
        except Timeout:
            return True

    def holder(self, key: str) -> str:
        """Who works on a run, in words."""
        try:
            facts = json.loads((self.part(key) / WORK / HOLDER).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):  # it begins, or it ends
            return "another process"
        return f"process {facts['process']} on {facts['host']}"

    def failure(self, key: str, since: float) -> str | None:
        """The error of a run that somebody worked on until it failed, after a time of
        `time.time()`; else None.
        """
        file = self.failed(key) / "run.json"
        try:
            return (
                json.loads(file.read_text(encoding="utf-8"))["error"]
                if file.stat().st_mtime >= since
                else None
            )
        except (OSError, json.JSONDecodeError):
            return None

    def begin(self, key: str) -> Path:
        """An empty work folder. Call it with the key's lock held."""
        part = self.part(key)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        return part

    def finish(self, key: str, good: bool) -> Path:
        """Rename the work folder to what it became. An older failure of the same key goes."""
        shutil.rmtree(self.failed(key), ignore_errors=True)
        target = self.done(key) if good else self.failed(key)
        os.rename(self.part(key), target)
        return target

    def sweep(self) -> None:
        """Remove work folders that nobody works in: their runs were killed."""
        from filelock import Timeout

        for part in self.folder.glob("*.part"):
            try:
                with self.lock(part.stem).acquire(timeout=0):
                    shutil.rmtree(part, ignore_errors=True)
            except Timeout:
                continue

    def published(self, profile: str, name: str) -> dict:
        """run.json of what stands in runs/<profile>/<name> now; empty where nothing does."""
        try:
            return json.loads((self.runs / profile / name / "run.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}

    def outside(self, profile: str, planned: Mapping[str, Collection[str]]) -> list[str]:
        """Names published of the planned notebooks that no run of theirs has: left of an earlier
        grid.

        planned: notebook -> names of its runs.
        """
        found = []
        for file in sorted((self.runs / profile).glob("*/run.json")):
            name = file.parent.name
            notebook = self.published(profile, name).get("notebook", name)
            if name not in planned.get(notebook, [name]):
                found.append(name)
        return found

    def results(self, profile: str, reader: str) -> dict[str, bytes]:
        """Name -> facts, scores and claims of each published run of a profile, as bytes; without
        those of the reader.
        """
        return {
            file.parent.name: b"".join(
                (file.parent / name).read_bytes()
                for name in ("run.json", "result.json", "claims.jsonl")
                if (file.parent / name).is_file()
            )
            for file in sorted((self.runs / profile).glob("*/run.json"))
            if file.parent.name != reader
        }

    def targets(self, profile: str, name: str, run: dict) -> dict[str, Path]:
        """Where each file of a run is published. run: its run.json.

        Figures stand beside those of the other notebooks, those of a grid's run in a folder of
        their own; the rest by run.
        """
        home = self.runs / profile
        figures = home / "figures" if run.get("notebook", name) == name else home / "figures" / name
        return {
            file: figures / file.removeprefix("figures/")
            if file.startswith("figures/")
            else home / name / file
            for file in run.get("files", [])
        }

    def publish(self, key: str, profile: str, name: str) -> None:
        """Copy a finished run to runs/<profile>, remove what its predecessor left. Does nothing
        where it stands.
        """
        source = self.done(key)
        run = json.loads((source / "run.json").read_text(encoding="utf-8"))
        with self.lock("publish"):
            targets = self.targets(profile, name, run)
            before = self.published(profile, name)
            if before.get("key") == key and all(target.is_file() for target in targets.values()):
                return
            facts = {
                source / "run.json": self.runs / profile / name / "run.json"
            }  # last: it says the rest is there
            stale = set(self.targets(profile, name, before).values()) - set(targets.values())
            copy_all({source / file: target for file, target in targets.items()} | facts, stale)
