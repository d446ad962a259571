"""Before anything is loaded: how much memory and how many minutes each phase will take, from the
model's configuration alone.

Operations are counted (`census`), rates are measured on the device (`rates`), memory is added up
term by term.  Expect memory within 20 % and time within a factor of 2.  Estimate / measured on one
CPU core, one block, 2 × 512 tokens, float32: statistics of LLaMA-7B's 4.1 / 3.6 GiB and 57 / 65 s;
at half its width, a prehab step (fast stable rank) 1.6 / 1.8 GiB and 9 / 10 s, surgery in float32
0.9 / 1.0 GiB and 35 / 40 s.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from prehab_lib.inputs import check_whole
from prehab_lib.save.models import check_dense
from prehab_lib.scale.census import census
from prehab_lib.scale.optimizers import optimizer_named
from prehab_lib.scale.phases import (
    Phase,
    in_one_memory,
    prehab_phase,
    statistics_phase,
    surgery_phase,
    waiting_weights,
)
from prehab_lib.scale.rates import available_gib, rate
from prehab_lib.terms import ARITHMETIC, term_of


@dataclass(frozen=True)
class Estimate:
    """parameters: of the model; compressed: those of the layers to compress."""

    parameters: int
    compressed: int
    device: str
    phases: list[Phase]
    savings: list[str] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """GiB of the phase that needs most."""
        return max(phase.total for phase in self.phases)

    @property
    def host(self) -> float:
        """GiB of CPU memory beside the device, of the phase that needs most; 0 where the CPU is the
        device.
        """
        return max(sum(phase.host.values()) for phase in self.phases)

    @property
    def minutes(self) -> float:
        return sum(phase.minutes for phase in self.phases)

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    def check(
        self, available: float | None = None, host: float | None = None, remedy: str | None = None
    ) -> None:
        """Raises ValueError where a phase needs more GiB than `available`, or the CPU beside it
        more than `host`.

        None asks the device, or the CPU, what is free now.  remedy: what the sentence advises
        instead of `prehab`'s options.
        """
        available = available_gib(self.device) if available is None else available
        worst = max(self.phases, key=lambda phase: phase.total)
        if available is not None and worst.total > available:
            usual = (
                f"try {' or '.join(self.savings)}"
                if self.savings
                else "use a smaller model or a larger device"
            )
            raise ValueError(
                f"{worst.name} needs about {worst.total:.1f} GiB on {self.device}, where {available:.1f} GiB are free: "
                f"{remedy or usual}"
            )
        free = available_gib("cpu") if host is None else host
        if free is not None and self.host > free:
            raise ValueError(
                f"about {self.host:.1f} GiB of CPU memory are needed beside {self.device}, where {free:.1f} GiB are free: use "
                "fewer calibration samples or a smaller model"
            )

    def __str__(self) -> str:
        lines = [
            f"{self.parameters / 1e9:.2f} billion parameters, {self.compressed / 1e9:.2f} in layers to compress"
        ]
        for phase in self.phases:
            parts = ", ".join(
                f"{name} {gib:.2f}" for name, gib in phase.gib.items() if gib >= 0.005
            )
            lines.append(
                f"{phase.name:10} {phase.total:8.2f} GiB {phase.minutes:8.1f} min   {parts}"
            )
        lines.append(
            f"{'in all':10} {self.peak:8.2f} GiB {self.minutes:8.1f} min   on {self.device}, estimated"
        )
        if self.host:
            lines.append(f"{'':10} {self.host:8.2f} GiB of CPU memory beside it")
        return "\n".join(lines)


def estimate(
    source,
    *,
    batch: int = 1,
    window: int = 2048,
    samples: int = 256,
    steps: int = 0,
    removed: float = 0.4,
    dtype: torch.dtype = torch.bfloat16,
    train: str = "layers",
    compute: str | None = None,
    optimizer: str = "adamw",
    gradient_checkpointing: bool = False,
    surrogate: str = "nuclear",
    arithmetic: str = "exact",
    refresh: int = 1,
    power_iterations: int | None = None,
    rank_dtype: str | None = None,
    roots_on: str = "device",
    streamed: bool = False,
    statistics_dtype: torch.dtype = torch.float64,
    factor_dtype: torch.dtype = torch.float64,
    full_rank_grams: bool = True,
    processes: int = 1,
    device: str = "cpu",
    rates: Callable[[str, torch.dtype], float] | None = None,
    auto_class: str = "AutoModelForCausalLM",
) -> Estimate:
    """What statistics, prehab (`steps` of them, 0 leaves it out) and surgery by the Gram ruler will
    take.

    source: a transformers configuration, a model that has one, a hub name or a folder.  batch ×
    window: tokens of a forward pass; samples: calibration sequences.  dtype: of the weights as
    loaded.  The options of prehab are `prehab`'s. streamed: `stream.collect` and `stream.compress`
    with the model in CPU memory, instead of `stats` and `surgery`.  All Grams wait there for
    prehab; without prehab `stream.compress` does everything, and keeps one block's (fewer with
    hold="input").
    full_rank_grams: roots by Cholesky (n³ / 3); False: by eigenvectors (9 n³), as with fewer tokens
    than channels. processes: that share weights, gradients and optimizer of prehab by
    `fully_shard`; steps, memory and minutes are those of one, with `batch` sequences each.  rates:
    (kind, dtype) -> operations a second; None measures `device` for a few seconds.

    Raises ValueError for a source without a transformers configuration, a compressed one, or an
    unknown optimizer.
    """
    config = _config_of(source)
    chosen = optimizer_named(optimizer)
    check_whole(1, batch=batch, window=window, samples=samples, processes=processes)
    check_whole(0, steps=steps)
    term_of(surrogate, arithmetic, refresh, power_iterations)
    if train not in ("layers", "all"):
        raise ValueError(f"train = {train!r} is not known: choose one of layers, all")
    in_bfloat16 = compute == "bfloat16" or (compute is None and dtype == torch.bfloat16)
    forward_dtype = torch.bfloat16 if in_bfloat16 else torch.float32
    count = census(config, batch, window, forward_dtype, train, auto_class)
    speed = rates or (lambda kind, dtype: rate(kind, dtype, device))
    rank = getattr(torch, rank_dtype or ARITHMETIC[arithmetic])
    waiting = waiting_weights(count, samples * window, dtype, grams=bool(steps)) if streamed else {}
    phases = [
        statistics_phase(count, samples / batch, dtype, statistics_dtype, streamed, speed, waiting)
    ]
    if steps:
        options = dict(
            in_bfloat16=in_bfloat16,
            gradient_checkpointing=gradient_checkpointing,
            streamed=streamed,
        )
        options |= dict(
            on_device=roots_on == "device", processes=processes, foreach=_foreach(optimizer, device)
        )
        options |= dict(
            surrogate=surrogate if arithmetic == "fast" else None,
            refresh=refresh,
            rounds=power_iterations,
        )
        phases.append(prehab_phase(count, steps, dtype, chosen.state_bytes, rank, speed, **options))
    phases.append(
        surgery_phase(
            count, removed, dtype, factor_dtype, streamed, full_rank_grams, speed, waiting
        )
    )
    one_memory = torch.device(device).type == "cpu"
    if one_memory:
        phases = [in_one_memory(phase) for phase in phases]
    smaller_roots = "rank_dtype='float32'" + ("" if one_memory else " with roots_on='cpu'")
    savings = {
        "streamed=True": not streamed
        and not (one_memory and steps),  # prehab holds the model and all Grams anyway
        "gradient_checkpointing=True": steps and not gradient_checkpointing,
        smaller_roots: steps and (rank != torch.float32 or not (one_memory or roots_on == "cpu")),
        "optimizer='paged_adamw_8bit'": steps and chosen.state_bytes > 4,
    }
    return Estimate(
        parameters=count.total("parameters"),
        compressed=count.blocks * sum(layer.m * layer.n for layer in count.layers),
        device=device,
        phases=phases,
        savings=[option for option, wanted in savings.items() if wanted],
    )


def _foreach(optimizer: str, device: str) -> bool:
    """AdamW on a GPU works on all parameters at once, with a temporary of their size, unless it is
    fused.
    """
    return optimizer == "adamw" and torch.device(device).type == "cuda"


def _config_of(source):
    if isinstance(source, str | os.PathLike):
        import transformers

        from prehab_lib.save.hub import explained

        with explained(
            f"the configuration of {str(source)!r}",
            remedy="give the folder of a local copy instead",
        ):
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    else:
        config = getattr(source, "config", None) if isinstance(source, nn.Module) else source
    check_dense(
        config, str(source) if isinstance(source, str | os.PathLike) else type(source).__name__
    )
    if not hasattr(config, "num_hidden_layers"):
        raise ValueError(
            f"{type(source).__name__} has no transformers configuration with num_hidden_layers: the estimate is for models "
            "of repeated blocks that transformers can build"
        )
    return config
