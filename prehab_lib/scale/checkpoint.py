"""A training run that survives being killed: parameters, AdamW state, history and random state in
one safetensors file.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor


class Checkpoint:
    """Reads and writes one file; with `path=None` it does nothing.

    The file belongs to one experiment: a fingerprint of the settings and of the starting weights is
    kept with it, and another experiment is refused with a ValueError.
    """

    def __init__(self, path, settings: dict, starting: list[Tensor]):
        """starting: every weight and statistic the experiment starts from."""
        self.path = None if path is None else Path(path)
        self.fingerprint = "" if path is None else _fingerprint(settings, starting)
        self.parameters: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self.random_states: dict[str, Tensor] = {}
        self.beside: dict[
            str, Tensor
        ] = {}  # what `write` was given beside parameters and optimizer

    def resume(
        self, parameters: list[Tensor], optimizer: torch.optim.Optimizer
    ) -> tuple[list[dict], float]:
        """Restore what was written: the history's rows and the seconds spent; ([], 0.0) where there
        is nothing yet.
        """
        self.parameters, self.optimizer = parameters, optimizer
        if self.path is None or not self.path.is_file():
            return [], 0.0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads(file.metadata()["prehab"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as problem:
            raise ValueError(
                f"checkpoint {self.path} is damaged ({problem}): delete it to start over"
            ) from problem
        if about["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"checkpoint {self.path} belongs to other settings or weights: delete it to start over"
            )
        self._restore(tensors)
        return about["rows"], about["seconds"]

    def restore_random_state(self) -> None:
        """For dropout to go on as it would have; called after the batches already used were drawn
        again.
        """
        for device, state in self.random_states.items():
            if device == "cpu":
                torch.set_rng_state(state)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(state, int(device))

    def write(
        self, rows: list[dict], seconds: float, beside: dict[str, Tensor] | None = None
    ) -> None:
        """Replace the file in one step, so that a kill leaves the old one or the new one.  beside:
        comes back as `beside`.
        """
        if self.path is None:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {"random.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors |= {
                f"random.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())
            }
        tensors |= {
            f"beside.{name}": value.cpu().contiguous() for name, value in (beside or {}).items()
        }
        for i, parameter in enumerate(self.parameters):
            state = {"value": parameter.detach()} | self.optimizer.state.get(parameter, {})
            tensors |= {f"{i}.{name}": value.cpu().contiguous() for name, value in state.items()}
        about = {"fingerprint": self.fingerprint, "rows": rows, "seconds": seconds}
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, part, metadata={"prehab": json.dumps(about)})
            os.replace(part, self.path)
        except (OSError, SafetensorError) as problem:
            raise OSError(
                f"the checkpoint {self.path} could not be written: {problem}; is there space left on the disk?"
            ) from problem
        finally:
            if part.exists():
                part.unlink()

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        kept = {"random": {}, "beside": {}}
        for name in [name for name in tensors if name.partition(".")[0] in kept]:
            kind, _, of = name.partition(".")
            kept[kind][of] = tensors.pop(name)
        self.random_states, self.beside = kept["random"], kept["beside"]
        for i, parameter in enumerate(self.parameters):
            mine = {
                name.partition(".")[2]: value
                for name, value in tensors.items()
                if name.startswith(f"{i}.")
            }
            parameter.copy_(mine.pop("value"))
            if mine:
                on_device = {
                    k: v if k == "step" else v.to(parameter.device) for k, v in mine.items()
                }
                self.optimizer.state[parameter] = on_device


def _fingerprint(settings: dict, starting: list[Tensor]) -> str:
    """Two sums a tensor tell other values, signs and orders apart, without moving the tensor off
    its device.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in starting:
        x = tensor.detach().flatten()
        x = x.float() if x.device.type == "mps" else x.double()
        wave = torch.cos(torch.arange(len(x), device=x.device, dtype=x.dtype))
        digest.update(f"{tuple(tensor.shape)} {float(x.sum())} {float(x @ wave)}".encode())
    return digest.hexdigest()
