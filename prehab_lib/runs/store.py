"""Where runs are kept: runs/.store has each finished run under its key, runs/PROFILE what is read.

A run works in KEY.part. Finished, the folder is renamed to KEY, one atomic step; failed, to
KEY.failed with the notebook and its traceback. So KEY exists exactly when its run is complete,
whenever anything was killed.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from prehab_lib.runs.certificate import replacing

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class Busy(ValueError):
    """Another process has it."""


def copy(targets: Mapping[Path, Path]) -> None:
    """Copy files, source -> target, the first one last; where there is no room for all, none."""
    with ExitStack() as drafts:
        for source, target in targets.items():
            shutil.copyfile(source, drafts.enter_context(replacing(target)))


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

    @contextmanager
    def hold(self, name: str, busy: str) -> Iterator[None]:
        """Keep every other process off a key or a profile until this one ends, or raise Busy."""
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
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        return part

    def finish(self, key: str, good: bool) -> None:
        """Rename the work folder to what it became; an older failure goes."""
        shutil.rmtree(self.failed(key), ignore_errors=True)
        os.rename(self.part(key), self.done(key) if good else self.failed(key))

    def sweep(self) -> None:
        """Remove work folders that nobody works in: their runs were killed."""
        for part in self.folder.glob("*.part"):
            with suppress(Busy), self.hold_run(part.stem):
                shutil.rmtree(part, ignore_errors=True)

    def results(self, profile: str, reader: str) -> dict[str, bytes]:
        """Name -> facts, scores and claims of each published run but the reader's, as bytes."""
        results = {}
        for facts in sorted((self.runs / profile).glob("*/run.json")):
            files = [facts, facts.with_name("result.json"), facts.with_name("claims.jsonl")]
            if facts.parent.name != reader:
                results[facts.parent.name] = b"".join(f.read_bytes() for f in files if f.is_file())
        return results

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
        run, before = json.loads((source / "run.json").read_text(encoding="utf-8")), {}
        targets = self.targets(profile, name, run)
        with suppress(OSError, json.JSONDecodeError):  # nothing was published, or only half
            before = json.loads(facts.read_text(encoding="utf-8"))
        if before.get("key") == key and all(target.is_file() for target in targets.values()):
            return
        with FileLock(self.folder / "publish.lock"):  # runs that end at once share figures/
            copy({source / file: target for file, target in targets.items()})
            for stale in set(self.targets(profile, name, before).values()) - set(targets.values()):
                stale.unlink(missing_ok=True)
            copy({source / "run.json": facts})
