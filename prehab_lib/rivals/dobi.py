"""Dobi-SVD's own form, for small models: truncate activations, learn where, and fit the weights to
what is left of them.

Source: Dobi-SVD (arXiv 2502.02723).  Every step costs one thin SVD (t, m) a layer, of all t tokens
of a batch at once; for larger models gate the whitened weights (`learned`), which needs none.  With
whole ranks and all tokens stacked, the weight update is the whitened truncation of
`weightings.gram`: only the ranks are Dobi-SVD's own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, forward, mode, move, padding_mask
from prehab_lib.factors import Factors, LowRankLinear
from prehab_lib.layers import linear_layers, replace_module
from prehab_lib.progress import progress
from prehab_lib.rivals.gates import Gates, Learned, Settings, learn
from prehab_lib.rivals.subspaces import SUBSPACES
from prehab_lib.rivals.trial import check_given
from prehab_lib.rivals.truncation import LIMIT, truncate_smoothly
from prehab_lib.roots import on_factor_device
from prehab_lib.surgery import Report, recount


def weight_rank(gamma: float, shape: tuple[int, int], tokens: int) -> float:
    """γ min(m, n) / T: the rank of W (m, n) that a position γ, from 0 to T, among the T tokens of
    an activation stands for.

    By real division.  The released code takes min(m, n) // T first, which is 0 for keys and values
    (1024, 4096) at T = 2048.
    """
    return gamma * min(shape) / tokens


def activation_position(rank: float, shape: tuple[int, int], tokens: int) -> float:
    """γ = T rank / min(m, n), from 0 to T: the inverse of `weight_rank`."""
    return rank * tokens / min(shape)


def remapped_rank(kept: float | Fraction, shape: tuple[int, int]) -> int:
    """⌊ρ min(m, n)⌋ for a kept share ρ from 0 to 1: the largest rank that fits where a rank costs
    max(m, n) numbers.

    So every rank has its share and the other way round (`remapped_share`), where two plain factors
    (`budget.rank_for`) reach no rank above break-even.  Raises ValueError for a share outside 0 …
    1.
    """
    if not 0 <= kept <= 1:
        raise ValueError(f"kept = {kept!r}: give the share of parameters that is kept, from 0 to 1")
    return int(Fraction(str(kept)) * min(shape))


def remapped_share(rank: int, shape: tuple[int, int]) -> Fraction:
    """ρ = rank / min(m, n), exactly.  Raises ValueError for a rank outside 0 … min(m, n)."""
    if not 0 <= rank <= min(shape):
        raise ValueError(
            f"rank = {rank}: a weight of shape {tuple(shape)} allows 0 to {min(shape)}"
        )
    return Fraction(rank, min(shape))


def learn_positions(
    model: nn.Module,
    removed: float,
    task_loss: Callable,
    batches: Iterable,
    *,
    layers: Iterable[str] | None = None,
    start: Mapping[str, int | None] | None = None,
    limit: float = LIMIT,
    **settings,
) -> Learned:
    """Ranks by gradient: the objective of `gates.learn`, with gates on the singular values of every
    layer's activations.

    gammas come back in weight ranks (`activation_position` turns them into tokens).  layers: names,
    or None for the model's default.  start: a plan {layer: rank or None}.  limit: see
    `truncation.truncate_smoothly`.  settings: `gates.Settings`. Our own choices: one SVD over all
    tokens of a batch (the paper has one sequence a batch), in full (the paper's is randomised), β
    annealed, and ranks fitted to the budget exactly.
    The model is as before afterwards.  Raises ValueError as `gates.learn` does, and for a batch
    with padding.
    """
    chosen = Settings(**settings)
    check_given("learn_positions", task_loss=task_loss, batches=batches)
    shapes = {
        name: tuple(module.weight.shape) for name, module in linear_layers(model, layers).items()
    }
    gates = Gates(shapes, removed, chosen.accounting, start)

    def loss(model: nn.Module, batch) -> Tensor:
        _refuse_padding(batch)
        return task_loss(model, batch)

    found = learn(
        model,
        gates,
        lambda: truncated(model, gates, limit),
        loss,
        batches,
        chosen,
        "learn_positions",
    )
    return Learned({name: found.ranks.get(name) for name in shapes}, found.gammas, found.rows)


@contextmanager
def truncated(model: nn.Module, gates: Gates, limit: float = LIMIT) -> Iterator[None]:
    """Inside, the activations A = x Wᵀ (t, m) of each layer with a gate pass it; the bias is added
    afterwards.

    The gate stands at the layer's share of the min(t, m, n) singular values that A can have.
    """

    def pass_gate(name: str, module: nn.Linear, args: tuple, out: Tensor) -> Tensor:
        bias = 0 if module.bias is None else module.bias
        A = (out - bias).reshape(-1, module.out_features)
        position = gates.share(name) * min(len(A), *module.weight.shape)
        wide = torch.float64 if A.dtype == torch.float64 else torch.float32
        F = truncate_smoothly(A, position.to(A.device, wide), gates.beta, limit)
        return F.reshape(out.shape) + bias

    with ExitStack() as hooks:
        for name, module in linear_layers(model, gates.terms).items():
            hooks.callback(module.register_forward_hook(partial(pass_gate, name)).remove)
        yield


@torch.no_grad()
def project(
    model: nn.Module,
    ranks: Mapping[str, int | None],
    batches: Iterable,
    *,
    subspace: str = "stacked",
) -> dict[str, Factors]:
    """Ŵ = V Vᵀ W for every layer with a rank k, as factors V (m, k) and Vᵀ W (k, n) in float64; V
    holds orthonormal columns.

    subspace: how V is found from the activations A_i = x_i Wᵀ of the batches, a key of `SUBSPACES`.
    "stacked" is the best there is for the outputs; the others are the paper's, for comparison.  All
    layers in one pass over the dense model; memory m² (stacked) or m k numbers a layer.  The
    paper's code applies the soft gate once more here; ranks are whole now. Raises ValueError for an
    unknown subspace, no batch, padding, a layer that is never called, or one whose batch has fewer
    tokens than its rank (not for "stacked").
    """
    if subspace not in SUBSPACES:
        raise ValueError(
            f"subspace = {subspace!r} is not known: choose one of {', '.join(SUBSPACES)}"
        )
    chosen = {name: rank for name, rank in ranks.items() if rank}
    modules = linear_layers(model, chosen) if chosen else {}
    found = {name: SUBSPACES[subspace](rank) for name, rank in chosen.items()}

    def read(name: str, module: nn.Linear, args: tuple, out: Tensor) -> None:
        A = on_factor_device(out if module.bias is None else out - module.bias).reshape(
            -1, module.out_features
        )
        try:
            found[name].add(A)
        except ValueError as problem:
            raise ValueError(f"layer {name!r}: {problem}") from problem

    with ExitStack() as hooks, mode(model, training=False):
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(partial(read, name)).remove)
        for batch in progress(batches, "activations"):
            _refuse_padding(batch)
            forward(model, move(batch, device_of(model)))
    if silent := [name for name in modules if not found[name].seen]:
        raise ValueError(
            f"no batch reached layer {silent[0]!r} (of {len(silent)}): pass batches, and does forward call it?"
        )
    factors = {}
    for name, module in modules.items():
        V = found[name].basis()
        factors[name] = Factors(V, V.T @ on_factor_device(module.weight))
    return factors


def compress(
    model: nn.Module,
    removed: float,
    task_loss: Callable,
    batches: Iterable,
    *,
    subspace: str = "stacked",
    **learning,
) -> tuple[Report, Learned]:
    """`learn_positions`, then `project`, then low-rank layers in the place of the dense ones, in
    place.

    learning: arguments of `learn_positions`.  What was removed is recounted from the modules, in
    plain factors: with accounting="remap" the ranks are for factors stored half in 8 bits, and as
    they stand here they hold more. Raises ValueError as these do; then the model is as it was.
    """
    found = learn_positions(model, removed, task_loss, batches, **learning)
    modules = linear_layers(model, found.ranks)
    new = {
        name: LowRankLinear.in_place_of(modules[name], factors.balanced())
        for name, factors in project(model, found.ranks, batches, subspace=subspace).items()
    }
    for name, module in new.items():
        replace_module(model, name, module)
    before = {name: module.weight.numel() for name, module in modules.items()}
    return recount(model, removed, found.ranks, before), found


def _refuse_padding(batch) -> None:
    mask = padding_mask(batch)
    if mask is not None and not bool(mask.all()):
        raise ValueError(
            "a batch has padding, which would count as activations: give batches of full rows"
        )
