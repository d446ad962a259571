"""The phases of a compression, term by term: what each holds at its peak, and what it computes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from prehab_lib.scale.census import Census
from prehab_lib.scale.lean import COLUMNS
from prehab_lib.statistics.inputs import ROWS

GIB = 2**30


@dataclass(frozen=True)
class Phase:
    """gib: what takes memory on the device -> GiB at the peak.  operations: (kind, dtype) -> their
    number.

    host: what waits in CPU memory meanwhile -> GiB.
    """

    name: str
    gib: dict[str, float]
    operations: dict[tuple[str, torch.dtype], float]
    minutes: float
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.gib.values())


def in_one_memory(phase: Phase) -> Phase:
    """Where the device is the CPU: what waits lies in the same memory, and what is at work is a
    part of it.
    """
    return replace(phase, gib=phase.gib | phase.host, host={})


def waiting_weights(
    count: Census, tokens: int, dtype: torch.dtype, grams: bool
) -> dict[str, float]:
    """Bytes in CPU memory while blocks take turns on the device.  grams: those of all blocks are
    kept for prehab.
    """
    waiting = {"weights": count.total("parameters") * bytes_of(dtype)}
    waiting["hidden states"] = tokens * count.width * bytes_of(dtype)
    return waiting | ({"Grams": count.blocks * grams_of(count)} if grams else {})


def statistics_phase(
    count: Census,
    batches: float,
    dtype,
    sums: torch.dtype,
    streamed: bool,
    speed,
    waiting: dict[str, float],
) -> Phase:
    operations = Counter({("matmul", dtype): batches * count.total("forward")})
    for n in count.inputs:
        operations["matmul", sums] += count.blocks * 2 * n**2 * batches * count.tokens
    widest = max(count.inputs)
    passing = (
        count.tokens * widest * (bytes_of(dtype) * 3 + bytes_of(sums))
        + 2 * widest * min(widest, ROWS) * 8
    )
    blocks = 1 if streamed else count.blocks
    weights = count.block["parameters"] if streamed else count.total("parameters")
    gib = {
        "weights": weights * bytes_of(dtype),
        "Grams": blocks * grams_of(count),
        "passing": passing,
    }
    if not streamed:
        gib["logits"] = count.logits * bytes_of(dtype)
    return _phase("statistics", gib, operations, speed, waiting)


def prehab_phase(
    count: Census,
    steps: int,
    dtype: torch.dtype,
    state_bytes: float,
    rank: torch.dtype,
    speed,
    *,
    in_bfloat16: bool,
    gradient_checkpointing: bool,
    streamed: bool,
    on_device: bool,
    surrogate: str | None,
    refresh: int,
    rounds: int | None,
    foreach: bool,
    processes: int,
) -> Phase:
    """surrogate: that of the fast arithmetic, None for the exact one's."""
    trained, parameters = count.total("trained"), count.total("parameters")
    products = torch.bfloat16 if in_bfloat16 else torch.float32
    sharded = trained / processes
    gib = {
        "masters": 4 * sharded,
        "frozen weights": (parameters - trained) * bytes_of(dtype) / processes,
        "bfloat16 copies": 2 * sharded if in_bfloat16 else 0,
        "gradients": 4 * sharded,
        "optimizer": (state_bytes + (4 if foreach else 0)) * sharded,
        "roots": _roots(count, rank) if on_device else max(count.inputs) ** 2 * bytes_of(rank),
        "Grams": 0 if streamed else count.blocks * grams_of(count),
        "activations": _activations(count, products, gradient_checkpointing) + 4 * count.logits,
        "surrogate": _surrogate_work(count, surrogate, rank),
    }
    tangents = (
        4 * sum(layer.m * layer.n for layer in count.layers) * count.blocks
        if surrogate and refresh > 1
        else 0
    )
    gib["tangents"] = tangents if on_device else 0
    forward = count.total("forward") + (
        count.blocks * count.block["forward"] if gradient_checkpointing else 0
    )
    operations = Counter({("matmul", products): steps * (forward + count.total("backward"))})
    for layer in count.layers:
        each = steps * count.blocks
        for kind, number in _surrogate_operations(
            layer.m, layer.n, surrogate, rank, rounds
        ).items():
            operations[kind] += each * number / (refresh if surrogate else 1)
        if surrogate:
            operations["copy", torch.float32] += each * 6 * layer.m * layer.n * bytes_of(rank)
    for n in count.inputs if surrogate != "stable_rank" else ():
        operations["cholesky", torch.float64] += count.blocks * n**3 / 3
    operations["copy", torch.float32] += steps * sharded * (12 + 2 * state_bytes)
    waiting = {"Grams": count.blocks * grams_of(count)} if streamed else {}
    waiting |= {} if on_device else {"roots": _roots(count, rank), "tangents": tangents}
    return _phase("prehab", gib, operations, speed, waiting)


def _surrogate_operations(
    m: int, n: int, surrogate: str | None, rank: torch.dtype, rounds: int | None
) -> dict:
    """Of R(W L) and its gradient, once, for a layer (m, n)."""
    p, q = min(m, n), max(m, n)
    if surrogate == "stable_rank":
        # A round reads two matrices; each costs a launch or a thread's start beside it.
        return {
            ("matmul", rank): 2 * m * n**2,
            ("copy", torch.float32): (2 * (rounds or 1) + 4) * m * n * bytes_of(rank),
        }
    if surrogate:  # by eigenvectors in float64, which ill-conditioned layers end with
        in_rank = {
            ("matmul", rank): 4 * m * n**2 + 4 * p**2 * q,
            ("matmul", torch.float64): 4 * p**2 * q,
        }
        return in_rank | {("eigh", torch.float64): 9 * p**3}
    return {("matmul", rank): 4 * m * n**2 + 2 * m * n * p, ("svd", rank): 6 * q * p**2 + 20 * p**3}


def _surrogate_work(count: Census, surrogate: str | None, rank: torch.dtype) -> float:
    """Bytes while one layer's is made."""
    sizes = [(layer.m * layer.n, min(layer.m, layer.n) ** 2) for layer in count.layers]
    if surrogate is None:
        return 7 * max(mn for mn, _ in sizes) * bytes_of(rank)
    if surrogate == "stable_rank":
        return 5 * max(mn for mn, _ in sizes) * bytes_of(rank)
    return max(5 * mn * bytes_of(rank) + 8 * (2 * mn + 4 * pp) for mn, pp in sizes)


def surgery_phase(
    count: Census,
    removed: float,
    dtype,
    factors: torch.dtype,
    streamed: bool,
    full_rank: bool,
    speed,
    waiting: dict[str, float],
) -> Phase:
    operations = Counter()
    for n in count.inputs:
        if any(
            layer.n == n <= 2 * layer.m for layer in count.layers
        ):  # a wide layer takes its Gram without a root
            kind, number = ("cholesky", n**3 / 3) if full_rank else ("eigh", 9 * n**3)
            operations[kind, torch.float64] += count.blocks * number
    # float32 resolves singular values down to a few percent of the largest: what is below takes a
    # second round.
    rounds = 2 if factors == torch.float32 else 1
    work = 0
    for layer in count.layers:
        m, n, p = layer.m, layer.n, min(layer.m, layer.n)
        a_round = (
            2 * p * n**2 + 4 * p**2 * n
        )  # the ruler's view twice, by triangles; its moment; the rows turned
        operations["matmul", factors] += count.blocks * (
            rounds * a_round + (2 * m * n * p + p**3 if m > n else 0)
        )
        operations["eigh", factors] += count.blocks * rounds * 9 * p**3
        if m > n:
            operations["matmul", torch.float64] += count.blocks * 2 * m * n**2
            operations["cholesky", torch.float64] += count.blocks * n**3 / 3
        # A root and its copy, or corners of a Gram
        root = (
            2 * 8 * min(n, COLUMNS) ** 2
            if n > 2 * m
            else n**2 * (8 if factors == torch.float64 else 12)
        )
        work = max(work, _factorising(m, n, removed, rounds) * bytes_of(factors) + root)
    weights = count.block["parameters"] if streamed else count.total("parameters")
    blocks = 1 if streamed else count.blocks
    kept = (1 - removed) * blocks * sum(layer.m * layer.n for layer in count.layers)
    gib = {"weights": weights * bytes_of(dtype), "factors": kept * bytes_of(dtype)}
    gib |= {"Grams": blocks * grams_of(count), "one layer": work}
    return _phase("surgery", gib, operations, speed, waiting)


def _factorising(m: int, n: int, removed: float, rounds: int) -> float:
    """Numbers at the peak of one layer's factorisation, beside the root: at its moment, its
    eigenvectors, or its factors.
    """
    p, parts = min(m, n), 2 * min(m, n) * min(n, COLUMNS)
    kept = p if rounds > 1 else (1 - removed) * m * n / (m + n)  # a second round needs all rows
    moment = 2 * p**2 + parts + (m * n if m <= n <= 2 * m else 0)
    eigenvectors = 3 * p**2  # with LAPACK's work space
    result = p**2 + parts + kept * (n + (m if m > n else 0))
    return max(moment, eigenvectors, result) + (p**2 if m > n else 0)


def _phase(
    name: str,
    parts: dict[str, float],
    operations: Counter,
    speed: Callable,
    waiting: dict[str, float],
) -> Phase:
    seconds = sum(
        number / speed(kind, dtype) for (kind, dtype), number in operations.items() if number
    )
    gib, host = ({part: size / GIB for part, size in sizes.items()} for sizes in (parts, waiting))
    return Phase(name, gib, dict(operations), seconds / 60, host)


def _activations(count: Census, dtype: torch.dtype, recomputed: bool) -> float:
    if not recomputed:
        return count.total("saved")
    return (
        count.outside["saved"]
        + count.block["saved"]
        + count.blocks * count.tokens * count.width * bytes_of(dtype)
    )


def grams_of(count: Census) -> float:
    """Bytes of one block's Grams in float64."""
    return 8 * sum(n**2 for n in count.inputs)


def _roots(count: Census, dtype: torch.dtype) -> float:
    """Bytes of all blocks' roots."""
    return count.blocks * sum(n**2 for n in count.inputs) * bytes_of(dtype)


def bytes_of(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits // 8
