"""Where runs are kept: runs/.store has each finished run under its key, runs/PROFILE what is read.

A run works in KEY.part. Finished, the folder is renamed to KEY, one atomic step; failed, to
KEY.failed with the notebook and its traceback. So KEY exists exactly when its run is complete,
whenever anything was killed.
"""

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from prehab_lib.runs.certificate import replacing

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class Busy(ValueError):
    """Another process has it."""


def copy(source: Path, target: Path) -> None:
    """Copy a file in one step."""
    with replacing(target) as draft:
        shutil.copyfile(source, draft)


def copy_all(targets: Mapping[Path, Path]) -> None:
    """Copy files, source -> target. Where there is no room for all of them, none is touched."""
    drafts = {
        target: target.with_name(f".{target.name}.{os.getpid()}") for target in targets.values()
    }
    try:
        for source, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, drafts[target])
        for target, draft in drafts.items():
            os.replace(draft, target)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


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

    def log(self, profile: str, name: str) -> Path:
        """What a run and its libraries print, as it comes; kept until the run is started again."""
        return self.runs / profile / "logs" / f"{name}.log"

    @contextmanager
    def hold(self, name: str, busy: str) -> Iterator[None]:
        """Keep every other process off a key or a profile; the system frees it when this one dies.

        Raises Busy with that sentence while another process holds it.
        """
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Busy(busy) from None
        try:
            yield
        finally:
            lock.release()

    def hold_run(self, key: str):
        """Keep every other process off a run. Raises Busy."""
        return self.hold(key, "another process is at work on it: come back when that has ended")

    def hold_profile(self, profile: str):
        """Keep every other driver off a profile. Raises Busy."""
        where = os.path.relpath(self.runs / profile)
        return self.hold(profile, f"another driver is at work on {where}: wait for it, or stop it")

    def begin(self, key: str) -> Path:
        """An empty work folder; an older failure goes. Call it with the key held."""
        shutil.rmtree(self.failed(key), ignore_errors=True)
        shutil.rmtree(self.part(key), ignore_errors=True)
        self.part(key).mkdir(parents=True)
        return self.part(key)

    def finish(self, key: str, good: bool) -> None:
        """Rename the work folder to what it became."""
        os.rename(self.part(key), self.done(key) if good else self.failed(key))

    def sweep(self) -> None:
        """Remove work folders that nobody works in: their runs were killed."""
        for part in self.folder.glob("*.part"):
            with suppress(Busy), self.hold_run(part.stem):
                shutil.rmtree(part, ignore_errors=True)

    def published(self, profile: str, name: str) -> dict:
        """run.json of what stands in runs/PROFILE/NAME now; empty where nothing does."""
        try:
            return json.loads((self.runs / profile / name / "run.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return {}

    def outside(self, profile: str, planned: Mapping[str, Collection[str]]) -> list[str]:
        """Names published of the planned notebooks that no run of theirs has: of an earlier grid.

        planned: notebook -> names of its runs.
        """
        names = [file.parent.name for file in sorted((self.runs / profile).glob("*/run.json"))]
        notebook = {name: self.published(profile, name).get("notebook", name) for name in names}
        return [name for name in names if name not in planned.get(notebook[name], [name])]

    def results(self, profile: str, reader: str) -> dict[str, bytes]:
        """Name -> facts, scores and claims of each published run but the reader's, as bytes."""
        results = {}
        for file in sorted((self.runs / profile).glob("*/run.json")):
            read = [file, file.with_name("result.json"), file.with_name("claims.jsonl")]
            if file.parent.name != reader:
                results[file.parent.name] = b"".join(f.read_bytes() for f in read if f.is_file())
        return results

    def targets(self, profile: str, name: str, run: dict) -> dict[str, Path]:
        """Where each file of a run is published. run: its run.json.

        Figures stand beside those of the other notebooks, those of a grid's run in a folder of
        their own; the rest by run.
        """
        home = self.runs / profile
        figures = home / "figures" if run.get("notebook", name) == name else home / "figures" / name
        targets = {}
        for file in run.get("files", []):
            inside = file.removeprefix("figures/")
            targets[file] = home / name / file if inside == file else figures / inside
        return targets

    def publish(self, key: str, profile: str, name: str) -> None:
        """Copy a finished run to runs/PROFILE, and remove what its predecessor left there.

        run.json comes last, as it says that the rest is there. Does nothing where it all stands.
        """
        source = self.done(key)
        run = json.loads((source / "run.json").read_text(encoding="utf-8"))
        targets = self.targets(profile, name, run)
        before = self.published(profile, name)
        if before.get("key") == key and all(target.is_file() for target in targets.values()):
            return
        facts = {source / "run.json": self.runs / profile / name / "run.json"}
        copy_all({source / file: target for file, target in targets.items()} | facts)
        for stale in set(self.targets(profile, name, before).values()) - set(targets.values()):
            stale.unlink(missing_ok=True)
