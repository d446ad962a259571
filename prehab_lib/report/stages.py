"""Stages of a long run, each kept as it ends: a run that was killed goes on at the one it was at.

The runner names a folder for the run's key, PREHAB_STAGES, and removes it when the run is whole.
Without a runner, as in a notebook that is stepped through, stages live as long as the process.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from prehab_lib.runs.certificate import replacing, write


class Stages:
    """Named stages: `put` one as it ends, `get` it, and ask `name in stages` before the work."""

    def __init__(self):
        named = os.environ.get("PREHAB_STAGES")
        self._own = None if named else tempfile.TemporaryDirectory()
        self.folder = Path(named or self._own.name)

    def __contains__(self, name: str) -> bool:
        return (self.folder / f"{name}.json").is_file()

    def put(self, name: str, facts, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep a stage, whole or not at all.  facts: what JSON can hold, NaN too."""
        given = (tensors or {}).items()
        alone = {key: value.detach().cpu().clone().contiguous() for key, value in given}  # unshared
        with replacing(self.folder / f"{name}.safetensors") as draft:
            save_file(alone, draft)
        write(self.folder / f"{name}.json", json.dumps(facts))  # last: now the stage has ended

    def get(self, name: str) -> tuple:
        """(facts, tensors on the CPU) of a stage that is there."""
        facts = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        return facts, load_file(self.folder / f"{name}.safetensors")
