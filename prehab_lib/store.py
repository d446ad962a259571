"""Where runs are kept: runs/.store holds each finished run under its key, runs/<profile> the copies people read.

A run works in <key>.part. Finished, the folder is renamed to <key>, one atomic step; failed, to <key>.failed with the
notebook and its traceback. So <key> exists exactly when its run is complete, whenever anything was killed.
"""

import errno
import json
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def no_space(folder) -> OSError:
    """The error for a full disk, as one sentence."""
    return OSError(errno.ENOSPC, f"no space left on {folder}: free some and run the same command again")


def copy(source: Path, target: Path) -> None:
    """Copy a file so that the target is the old one or the new one, never half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


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
        """Names published of the planned notebooks that no run of theirs has: left of an earlier grid.

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
        """Name -> facts, scores and claims of each published run of a profile, as bytes; without those of the reader."""
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

        Figures stand beside those of the other notebooks, those of a grid's run in a folder of their own; the rest by run.
        """
        home = self.runs / profile
        figures = home / "figures" if run.get("notebook", name) == name else home / "figures" / name
        return {
            file: figures / file.removeprefix("figures/") if file.startswith("figures/") else home / name / file
            for file in run.get("files", [])
        }

    def publish(self, key: str, profile: str, name: str) -> None:
        """Copy a finished run to runs/<profile>, remove what its predecessor left. Does nothing where it stands."""
        source = self.done(key)
        run = json.loads((source / "run.json").read_text(encoding="utf-8"))
        with self.lock("publish"):
            targets = self.targets(profile, name, run)
            before = self.published(profile, name)
            if before.get("key") == key and all(target.is_file() for target in targets.values()):
                return
            for file, target in targets.items():
                copy(source / file, target)
            for stale in self.targets(profile, name, before).values():
                if stale not in targets.values():
                    stale.unlink(missing_ok=True)
            copy(source / "run.json", self.runs / profile / name / "run.json")  # last: it says the rest is there
