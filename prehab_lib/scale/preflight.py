"""The memory that each phase of a compression needs at its peak, before anything is loaded.

Surgery is counted with lazy decompositions.  Expect the measured peak within a factor of 1.5.  Not
counted: attention that holds a number for every pair of tokens, and what libraries keep.
"""

import os
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from types import SimpleNamespace

import psutil
import torch
import transformers
from torch import nn

from prehab_lib.inputs import check_whole
from prehab_lib.layers import linear_layers
from prehab_lib.save.rewrite import to_linear
from prehab_lib.scale.skeleton import config_of, refuse_compressed
from prehab_lib.statistics.influence import block_of

GIB = 2**30
# Layers of one parent that read the same tensor, by the names that the families give them.
SHARING = (r"(q|k|v|query|key|value)(_proj|_lin)?", r"(gate|up)_proj")
OPTIONS = "streamed=True, gradient_checkpointing=True, rank_dtype='float32' or roots_on='cpu'"
LESS = f"try Plan's {OPTIONS}, a smaller model or a larger device"
FEWER = "use fewer calibration samples or a smaller model"


@dataclass(frozen=True)
class Plan:
    batch: int = 1  # windows of a forward pass
    window: int = 2048  # its tokens
    samples: int = 256  # calibration windows
    removed: float = 0.4
    steps: int = 0  # of prehab, 0 leaves it out
    lora: int = 0  # rank of rehab, 0 leaves it out
    dtype: torch.dtype = torch.bfloat16  # of the weights as loaded
    streamed: bool = False  # by `scale.stream`, with the model (and Grams for prehab) in CPU memory
    # Options of `prehab`:
    compute: str | None = None
    optimizer: str = "adamw"
    gradient_checkpointing: bool = False
    refresh: int = 1
    rank_dtype: str = "float64"
    roots_on: str = "device"
    grams_on: str = "device"  # or "cpu", where `prehab` and surgery are handed them

    def __post_init__(self):
        check_whole(1, batch=self.batch, window=self.window, samples=self.samples)
        check_whole(0, steps=self.steps, lora=self.lora)


@dataclass(frozen=True)
class Estimate:
    parameters: int  # of the model
    compressed: int  # of the layers to compress
    layers: dict[str, torch.Tensor]  # their weights, of shapes only
    device: str
    phases: dict[str, dict[str, float]]  # GiB on the device at the peak, by phase and part
    host: float  # the most GiB of CPU memory beside the device; 0 where the CPU is the device

    @property
    def totals(self) -> dict[str, float]:
        return {name: sum(parts.values()) for name, parts in self.phases.items()}

    @property
    def peak(self) -> float:
        return max(self.totals.values())

    def check(self, remedy: str = LESS) -> None:
        """Raises ValueError where less is free now; `remedy` is the advice for the device."""
        worst = max(self.phases, key=self.totals.get)
        beside = f"what waits beside {self.device}"
        needs = (worst, self.peak, self.device, remedy), (beside, self.host, "cpu", FEWER)
        for what, gib, device, advice in needs:
            free = available_gib(device)
            if gib > free:
                there = f"on {device}, where {free:.1f} GiB are free"
                raise ValueError(f"{what} needs about {gib:.1f} GiB {there}: {advice}")

    def __str__(self) -> str:
        billions, chosen = self.parameters / 1e9, self.compressed / 1e9
        lines = [f"{billions:.2f} billion parameters, {chosen:.2f} in layers to compress"]
        for name, phase in self.phases.items():
            parts = [f"{part} {gib:.2f}" for part, gib in phase.items() if gib >= 0.005]
            lines.append(f"{name:10} {self.totals[name]:8.2f} GiB   {', '.join(parts)}")
        lines.append(f"{'at most':10} {self.peak:8.2f} GiB   on {self.device}, estimated")
        if self.host:
            lines.append(f"{'':10} {self.host:8.2f} GiB   of CPU memory beside it")
        return "\n".join(lines)


def estimate(source, plan: Plan = Plan(), device: str = "cpu") -> Estimate:
    """The memory of each phase: statistics, prehab, surgery by the Gram ruler, rehab, scoring.

    source: a transformers configuration, a model that has one, a hub name or a folder, of a causal
    language model; or `sizes_of` any.  Raises ValueError for one without them, or a compressed one.
    """
    on_cpu = torch.device(device).type == "cpu"
    s = source if isinstance(source, SimpleNamespace) else _sizes(source, plan.dtype)
    phases, host = defaultdict(dict), Counter()
    for name, part, here, waiting in _needed(s, plan, on_cpu):
        if on_cpu:  # what waits lies in the same memory
            here, waiting = max(here, waiting), 0
        if here:
            phases[name][part] = here / GIB
        host[name] += waiting / GIB
    return Estimate(s.parameters, s.compressed, s.layers, device, phases, max(host.values()))


def available_gib(device: str = "cpu") -> float:
    """GiB that are free on the device now."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GIB
    return psutil.virtual_memory().available / GIB


def _sizes(source, dtype: torch.dtype) -> SimpleNamespace:
    """Numbers (not bytes) of a model and its parts."""
    kind = type(source).__name__
    if isinstance(source, str | os.PathLike):
        config = config_of(source)
    else:
        config = getattr(source, "config", None) if isinstance(source, nn.Module) else source
        refuse_compressed(config, kind)
    if not hasattr(config, "num_hidden_layers"):
        lacks = f"{kind} has no transformers configuration with num_hidden_layers"
        raise ValueError(f"{lacks}: give a model of repeated blocks that transformers can build")
    with torch.device("meta"):  # shapes only, nothing is allocated
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        to_linear(model)
    return sizes_of(model, config.vocab_size)


def sizes_of(model: nn.Module, vocabulary: int = 0) -> SimpleNamespace:
    """Numbers of a model that may be on the device "meta"; vocabulary: of logits at every token."""
    layers, inputs = linear_layers(model), {}
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        reader = next((pattern for pattern in SHARING if re.fullmatch(pattern, leaf)), leaf)
        inputs[parent, reader] = layer.in_features
    weights = [layer.weight.numel() for layer in layers.values()]
    block = model.get_submodule(block_of(next(iter(layers))))
    return SimpleNamespace(
        model=model,
        dtype=next(model.parameters()).dtype,
        parameters=sum(p.numel() for p in model.parameters()),
        block=sum(p.numel() for p in block.parameters()),
        blocks=len({block_of(name) for name in layers}),
        compressed=sum(weights),
        dense=sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear)),
        layers={name: layer.weight for name, layer in layers.items()},
        largest=max(weights),
        shapes=[tuple(layer.weight.shape) for layer in layers.values()],
        inputs=list(inputs.values()),  # widths n of the distinct tensors that layers read
        outputs=sum(layer.out_features for layer in layers.values()),
        width=next(iter(inputs.values())),
        vocabulary=vocabulary,
    )


def _needed(s: SimpleNamespace, plan: Plan, on_cpu: bool) -> list[tuple[str, str, float, float]]:
    """Phase, what is there, its bytes on the device at the peak, those that wait on the CPU."""
    b, tokens = torch.finfo(plan.dtype).bits // 8, plan.batch * plan.window
    share = 1 / s.blocks if plan.streamed else 1  # of what is on the device at a time
    weights = b * (s.block if plan.streamed else s.parameters)
    frozen = b * (s.parameters - s.compressed)
    grams, logits = 8 * sum(n**2 for n in s.inputs), tokens * s.vocabulary
    widest, factors = tokens * max(s.inputs), (1 - plan.removed) * s.compressed
    far, away = plan.streamed, plan.grams_on == "cpu"  # what the CPU holds: all, or the Grams
    model, states = far * b * s.parameters, far * b * plan.samples * plan.window * s.width
    kept = grams * (away or (far and plan.steps > 0))  # for prehab

    # Training multiplies in `product` bytes, and saves for the backward pass what layers read and
    # give, 12 bytes a channel and block for norms and rotations, the logits and their gradient.
    halved = plan.compute == "bfloat16" or (plan.compute is None and b == 2)
    product = 2 if halved else 4
    saved = product * (sum(s.inputs) + s.outputs) + 12 * s.width * s.blocks
    activations = tokens * saved + 8 * logits
    recomputed = tokens * (product * s.width * s.blocks + saved / s.blocks) + 8 * logits
    rank = torch.finfo(getattr(torch, plan.rank_dtype)).bits // 8
    roots, at_home = rank * grams / 8, plan.roots_on == "device"
    tangents = 4 * s.compressed if plan.refresh > 1 else 0
    # Two moments; AdamW on a GPU has a temporary of all parameters' size, unless it is fused.
    optimizer = 12 if plan.optimizer == "adamw" and not on_cpu else 8

    table = [
        ("statistics", "weights", weights, model),
        ("statistics", "Grams", grams * share, kept),
        ("statistics", "hidden states", 0, states),
        ("statistics", "passing", (3 * b + 8) * widest, 0),  # once in float64
        ("statistics", "logits", 0 if plan.streamed else b * logits, 0),
        ("prehab", "masters", 4 * s.compressed, 0),
        ("prehab", "gradients", 4 * s.compressed, 0),
        ("prehab", "optimizer", optimizer * s.compressed, 0),
        ("prehab", "frozen weights", frozen, 0),
        ("prehab", "bfloat16 copies", 2 * s.compressed * halved, 0),
        ("prehab", "activations", recomputed if plan.gradient_checkpointing else activations, 0),
        ("prehab", "one layer", 7 * rank * s.largest, 0),
        ("prehab", "Grams", grams * (not (far or away)), kept),
        ("prehab", "roots", roots * at_home, roots * (not at_home)),
        ("prehab", "tangents", tangents * at_home, tangents * (not at_home)),
        ("surgery", "weights", weights, model),
        ("surgery", "Grams", grams * share * (not away), kept),
        ("surgery", "hidden states", 0, states),
        ("surgery", "factors", b * factors * share, 0),
        ("surgery", "one layer", 8 * 5 * s.largest, 0),  # factors, root, work space, in float64
        ("rehab", "masters", 4 * factors, 0),
        ("rehab", "frozen weights", frozen, 0),
        ("rehab", "bfloat16 copies", 2 * factors * halved, 0),
        ("rehab", "adapters", 16 * plan.lora * 2 * s.outputs, 0),
        ("rehab", "activations", activations, 0),
        ("scoring", "weights", b * s.parameters, 0),
        ("scoring", "passing", 3 * b * widest, 0),
        ("scoring", "logits", (b + 8) * logits, 0),  # twice in float32
    ]
    asked = {"prehab": plan.steps, "rehab": plan.lora}
    return [row for row in table if asked.get(row[0], True)]
