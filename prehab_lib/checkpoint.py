"""A training run that survives being killed: parameters, AdamW state, history and random state in one safetensors file."""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor


class Checkpoint:
    """Reads and writes one file; with `path=None` it does nothing.

    The file belongs to one experiment: a fingerprint of the settings and of the starting weights is kept with it, and
    another experiment is refused with a ValueError.
    """

    def __init__(self, path, settings: dict, parameters: list[Tensor], optimizer: torch.optim.Optimizer):
        self.path = None if path is None else Path(path)
        self.parameters, self.optimizer = parameters, optimizer
        self.fingerprint = _fingerprint(settings, parameters) if path is not None else ""
        self.random_state: Tensor | None = None

    def resume(self) -> tuple[list[dict], float]:
        """Restore what was written: the history's rows and the seconds spent; ([], 0.0) where there is nothing yet."""
        if self.path is None or not self.path.is_file():
            return [], 0.0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["prehab"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as problem:
            raise ValueError(f"checkpoint {self.path} is damaged ({problem}): delete it to start over") from problem
        if about["fingerprint"] != self.fingerprint:
            raise ValueError(f"checkpoint {self.path} belongs to other settings or weights: delete it to start over")
        self._restore(tensors)
        return about["rows"], about["seconds"]

    def restore_random_state(self) -> None:
        """For dropout to go on as it would have; called after the batches already used were drawn again."""
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)

    def write(self, rows: list[dict], seconds: float) -> None:
        """Replace the file in one step, so that a kill leaves the old one or the new one."""
        if self.path is None:
            return
        from safetensors.torch import save_file

        tensors = {"random": torch.get_rng_state()}
        for i, parameter in enumerate(self.parameters):
            state = {"value": parameter.detach()} | self.optimizer.state.get(parameter, {})
            tensors |= {f"{i}.{name}": value.cpu().contiguous() for name, value in state.items()}
        about = {"fingerprint": self.fingerprint, "rows": rows, "seconds": seconds}
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, part, metadata={"prehab": json.dumps(about)})
            os.replace(part, self.path)
        finally:
            part.unlink(missing_ok=True)

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.random_state = tensors.pop("random")
        for i, parameter in enumerate(self.parameters):
            mine = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{i}.")}
            parameter.copy_(mine.pop("value"))
            if mine:
                on_device = {k: v if k == "step" else v.to(parameter.device) for k, v in mine.items()}
                self.optimizer.state[parameter] = on_device


def _fingerprint(settings: dict, parameters: list[Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for parameter in parameters:
        digest.update(str(tuple(parameter.shape)).encode())
        digest.update(str(float(parameter.detach().double().abs().sum())).encode())
    return digest.hexdigest()
