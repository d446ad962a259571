"""Which runs fit beside one another: by number, cores, memory and GPUs."""

import socket
from collections.abc import Callable

from prehab_lib.runs import machine
from prehab_lib.runs.plan import Run

UNPRICED_MB = 2000  # what a run is taken to need where nobody knows: the laptop profile's runs need 800 to 1,300
BESIDE_MB = 200  # papermill's process, beside the kernel that a run's memory counts


def _counted(threads: int) -> str:
    return f"{threads} thread{'s' * (threads > 1)}"


class Nobody:
    """A lock where there is no other process to keep out."""

    def release(self) -> None:
        pass


class Slots:
    """Room for at most `width` runs. cores, memory_mb, gpus: None asks this machine, memory_mb what
    is free there now.

    A run that needs more than there is gets everything for itself. Memory is counted from the runs'
    prices, so that runs which have not reached their peak yet keep room for it. A GPU has one run.
    lock: name -> a lock between processes, which keeps the runs of two drivers off one GPU.
    """

    def __init__(
        self,
        width: int,
        cores: int | None = None,
        memory_mb: int | None = None,
        gpus: list[str] | None = None,
        lock: Callable | None = None,
    ):
        self.width = width
        self.cores = cores or machine.cores()
        self.memory_mb = memory_mb or machine.free_memory_mb()
        self.free = machine.gpus() if gpus is None else list(gpus)
        self.any_gpu = bool(self.free)
        self.lock = lock
        self.taken: dict[
            str, tuple[Run, str | None, object]
        ] = {}  # name -> run, its GPU, the GPU's lock

    @staticmethod
    def needed_mb(run: Run) -> int:
        """Memory to keep for a run."""
        return (
            round(UNPRICED_MB if run.price.memory_mb is None else run.price.memory_mb) + BESIDE_MB
        )

    def too_large(self, run: Run) -> bool:
        """Whether the run can only be alone here, and short of something even so."""
        return run.threads > self.cores or (
            self.memory_mb is not None and self.needed_mb(run) > self.memory_mb
        )

    def fits(self, run: Run) -> bool:
        """Whether the run may start now."""
        if run.gpu and self.any_gpu and not any(self._open(gpu) for gpu in self.free):
            return False
        if not self.taken:
            return True
        together = [run, *(other for other, *_ in self.taken.values())]
        if len(together) > self.width or sum(one.threads for one in together) > self.cores:
            return False
        return self.memory_mb is None or sum(map(self.needed_mb, together)) <= self.memory_mb

    def take(self, run: Run) -> bool:
        """Give the run its place, and a GPU where it asks for one and there is any; False where
        there is no room.
        """
        if not self.fits(run):
            return False
        for gpu in self.free if run.gpu else []:
            if (held := self._hold(gpu)) is not None:
                self.free.remove(gpu)
                self.taken[run.name] = (run, gpu, held)
                return True
        if not (run.gpu and self.any_gpu):
            self.taken[run.name] = (run, None, None)
        return run.name in self.taken

    def gpu_of(self, run: Run) -> str | None:
        """The GPU of a run that has its place, a name for CUDA_VISIBLE_DEVICES."""
        return self.taken[run.name][1]

    def leave(self, run: Run) -> None:
        """The run has ended."""
        _, gpu, held = self.taken.pop(run.name)
        if gpu is not None:
            held.release()
            self.free.append(gpu)

    def _hold(self, gpu: str):
        """The lock of a GPU, held; None where another driver has it."""
        if self.lock is None:
            return Nobody()
        from filelock import Timeout

        held = self.lock(f"gpu-{socket.gethostname()}-{gpu}")
        try:
            held.acquire(timeout=0)
        except Timeout:
            return None
        return held

    def _open(self, gpu: str) -> bool:
        held = self._hold(gpu)
        if held is not None:
            held.release()
        return held is not None

    def notes(self, planned: list[Run]) -> list[str]:
        """What of this machine shapes the run of a plan."""
        lines = [
            f"{run.name} needs {_counted(run.threads)} and about {self.needed_mb(run):,} MB, where {self.cores} cores and "
            f"{self.memory_mb or 0:,} MB are free: it runs alone"
            for run in planned
            if self.too_large(run)
        ]
        threads = max((run.threads for run in planned), default=1)
        at_once = min(self.width, len(planned))
        if at_once > 1 and at_once * threads > self.cores >= threads:
            fewer = max(1, self.cores // at_once)
            remedy = (
                f": --threads {fewer} plans for {min(at_once, self.cores)}"
                if fewer < threads
                else ""
            )
            lines.append(
                f"{self.cores} cores have room for {self.cores // threads} runs of {_counted(threads)} at a time{remedy}"
            )
        return lines
