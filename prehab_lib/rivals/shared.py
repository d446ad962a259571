"""What the rivals share: what ranks cost, the loss at some ranks, the loss change of a component.

W = left · right is a sum of k rank-one matrices left_i right_i.  Without component i the loss
changes to first order by ΔL_i = −⟨G, left_i right_i⟩ = −left_iᵀ G right_iᵀ, G = ∂L/∂W: no root, no
inverse, no solve.  In the letters of Zero Sum SVD (arXiv 2602.02848) that is −σ_i g_i with g_i =
∂L/∂σ_i = u_iᵀ H v_i, H = G L⁻ᵀ.  Σ_i ΔL_i = −⟨G, W⟩ under every ruler.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, loss_of, mode, move
from prehab_lib.budget import break_even_rank
from prehab_lib.decomposition import Decomposition
from prehab_lib.factors import LowRankLinear
from prehab_lib.inputs import check_choice
from prehab_lib.layers import linear_layers, refuse_packed, replace_module
from prehab_lib.progress import progress
from prehab_lib.roots import exactly
from prehab_lib.stats import LayerStats

Shape = tuple[int, int]  # (m, n) of a weight
Cuts = Mapping[str, Decomposition]  # layer -> its decomposition
Stats = Mapping[str, LayerStats]  # layer -> its statistics
Ranks = dict[str, int | None]  # layer -> its rank, None where it stays dense
DATA = ("task_loss", "batches", "validation")  # what allocations and recoveries may ask for


def compressible(decompositions: Cuts) -> dict[str, Shape]:
    """Layer -> (m, n) where some rank saves parameters, in the order of names."""
    shapes = {name: tuple(decompositions[name].shape) for name in sorted(decompositions)}
    return {name: shape for name, shape in shapes.items() if break_even_rank(shape)}


def pattern(name: str) -> str:
    """A name with * for its numbers: layers of one role in the blocks of a model share it."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def groups_of_one_type(shapes: Mapping[str, Shape]) -> list[list[str]]:
    """Layers of one pattern and one shape."""
    groups: dict[tuple, list[str]] = {}
    for name, shape in shapes.items():
        groups.setdefault((pattern(name), shape), []).append(name)
    return list(groups.values())


def parameters(shapes: Mapping[str, Shape], ranks: Ranks) -> int:
    """Numbers these layers store at these ranks: r (m + n), and m n where a layer stays dense."""
    return sum(ranks[name] * (m + n) if ranks[name] else m * n for name, (m, n) in shapes.items())


def root_loss(decomposition: Decomposition, rank: int, stats: LayerStats | None = None) -> float:
    """Root of the squared ruler at `rank`, times √tokens: ‖X (W − Ŵ)ᵀ‖_F for the Gram."""
    tokens = stats.tokens if stats is not None and stats.tokens else 1
    return (decomposition.tail_error(rank) * tokens) ** 0.5


def share_out(total: Fraction | int, weights: Mapping, caps: Mapping) -> dict[str, Fraction]:
    """`total` in proportion to `weights` (> 0), nobody above their cap; the others get what a cap
    cuts off.  In exact fractions: they sum to the total, or to the caps where that is less.
    """
    waiting = {name: Fraction(weight) for name, weight in weights.items()}
    shares: dict[str, Fraction] = {}
    left = Fraction(total)
    while waiting:
        unit = left / sum(waiting.values())
        full = [name for name, weight in waiting.items() if unit * weight >= caps[name]]
        if not full:
            return shares | {name: unit * weight for name, weight in waiting.items()}
        for name in full:
            shares[name] = Fraction(caps[name])
            left -= shares[name]
            del waiting[name]
    return shares


@dataclass(frozen=True)
class Cost:
    """What the ranks of one layer W (m, n) cost, in numbers.

    dense: m n.  full: min(m, n).  most: the largest rank that is stored as factors, 0 for none.
    least: the smallest allowed rank, max(1, ⌈floor · most⌉).  unit: what one rank costs.
    """

    dense: int
    full: int
    most: int
    least: int
    unit: int

    def saved(self, rank: int) -> int:
        """m n − unit · rank as factors; 0 above `most`."""
        return self.dense - rank * self.unit if rank <= self.most else 0


# Name -> fn(shape) -> (largest rank that is stored as factors, numbers that one rank costs).
# "break_even": factors of equal precision.  "remap": Dobi-SVD's storage, half in 8 bits
# (`quantised`); every layer is factorised but one of one row or column, which that never shrinks.
ACCOUNTINGS: dict[str, Callable[[Shape], tuple[int, int]]] = {
    "break_even": lambda shape: (break_even_rank(shape), sum(shape)),
    "remap": lambda shape: (min(shape) if min(shape) > 1 else 0, max(shape)),
}


def check_share(**given) -> None:
    """Raises ValueError naming the first argument that is no number from 0 to 1."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{name} = {value!r}: give a number from 0 to 1")


def costs_of(
    shapes: Mapping[str, Shape], accounting: str = "break_even", floor: float = 0.0
) -> dict[str, Cost]:
    """Layer -> what its ranks cost.  Raises ValueError for a bad accounting or floor."""
    check_choice("accounting", accounting, ACCOUNTINGS)
    check_share(floor=floor)
    costs = {}
    for name, shape in shapes.items():
        most, unit = ACCOUNTINGS[accounting](shape)
        least = max(1, math.ceil(Fraction(str(floor)) * most))
        costs[name] = Cost(math.prod(shape), min(shape), most, least, unit)
    return costs


@contextmanager
def replaced(model: nn.Module, new: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, `new` stands in the model; the very same modules come back, whatever happens."""
    before = {name: model.get_submodule(name) for name in new}
    try:
        for name, module in new.items():
            replace_module(model, name, module)
        yield
    finally:
        for name, module in before.items():
            replace_module(model, name, module)


@contextmanager
def truncated(model: nn.Module, decompositions: Cuts, ranks: Ranks) -> Iterator[None]:
    """Inside, each layer with a rank is the low-rank layer that surgery would put there."""
    chosen = {name: rank for name, rank in ranks.items() if rank}
    new = {}
    for name, module in linear_layers(model, chosen).items() if chosen else ():
        factors = decompositions[name].truncate(chosen[name]).balanced()
        new[name] = LowRankLinear.in_place_of(module, factors)
    with replaced(model, new):
        yield


@torch.no_grad()
def loss_at(
    model: nn.Module, decompositions: Cuts, ranks: Ranks, task_loss: Callable, batches: Iterable
) -> float:
    """Mean `task_loss` at these ranks, in eval mode, or inf.  Raises ValueError for no batch."""
    losses = []
    with mode(model, training=False), truncated(model, decompositions, ranks):
        for batch in batches:
            loss = float(loss_of(task_loss, model, move(batch, device_of(model))))
            if not math.isfinite(loss):
                return math.inf
            losses.append(loss)
    if not losses:
        raise ValueError("there is nothing to measure a loss on: the batches are empty")
    return sum(losses) / len(losses)


def low_rank_layers(model: nn.Module, names: Iterable[str], verb: str) -> dict[str, LowRankLinear]:
    """Low-rank layers of `names`, in the model's order.  Raises ValueError for one in 8 bits."""
    wanted = set(names)
    layers = {}
    for name, module in model.named_modules():
        if name in wanted and isinstance(module, LowRankLinear):
            layers[name] = module
    refuse_packed(layers, verb)
    return layers


@exactly()
def as_linear(layer: LowRankLinear, W: Tensor | None = None) -> nn.Linear:
    """The dense layer of W' = U V, or of W (m, n), with the same bias, flags, mode and dtype."""
    U, V = layer.U.weight.detach(), layer.V.weight.detach()
    if W is None:
        wide = torch.promote_types(U.dtype, torch.float32)
        W = U.to(wide) @ V.to(wide)
    dense = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    dense.weight = nn.Parameter(W.to(U), requires_grad=layer.U.weight.requires_grad)
    dense.bias = layer.bias
    return dense.train(layer.training)


def check_given(wanted_by: str, **given) -> None:
    """Raises ValueError naming the first argument that is None, or good for one pass alone."""
    for name, value in given.items():
        if value is None:
            raise ValueError(f"{wanted_by} needs {name}: pass {name}=...")
        if isinstance(value, Iterator):
            many = f"{wanted_by} goes over {name} many times"
            raise ValueError(f"{many}: pass a list or a DataLoader, not a generator")


def loss_changes(decompositions: Cuts, stats: Stats | None) -> dict[str, Tensor]:
    """ΔL_i of every component: layer -> (k,), float64 on the CPU, in the unit of the loss whose
    `grad` (m, n), a mean over samples, was collected.

    Each layer is factorised once; a lazy one stays on its shelf for surgery where there is room.
    Raises ValueError naming a layer whose `grad` was not collected, before any is factorised.
    """
    gradients = {}
    for name in decompositions:
        statistics = (stats or {}).get(name) or LayerStats()
        wanted_by = f"the loss change of the components of layer {name!r}"
        gradients[name] = statistics.need("grad", wanted_by)
    changes = {}
    for name in progress(decompositions, "loss changes"):
        cut = whole(decompositions[name])
        left, right = cut.left.double(), cut.right.double()  # (m, k), (k, n)
        changes[name] = -(left * (gradients[name].to(left) @ right.T)).sum(0).cpu()
    return changes


def sigma_gradients(changes: Mapping[str, Tensor], decompositions: Cuts) -> dict[str, Tensor]:
    """Layer -> g_i = ∂L/∂σ_i = −ΔL_i / σ_i (k,), from `loss_changes`; NaN where σ_i = 0."""
    slopes = {}
    for name, change in changes.items():
        sigma = decompositions[name].sigma.to(change)
        slopes[name] = torch.where(sigma > 0, -change / sigma, torch.nan)
    return slopes


def ordered(decomposition: Decomposition, order: Sequence[int]) -> Decomposition:
    """The same sum with its components in another order, a permutation of 0 … k − 1.

    `truncate(r)` then keeps the first r of that order; `sigma` no longer descends.
    """
    cut = whole(decomposition)
    at = torch.as_tensor(order, device=cut.sigma.device)
    return Decomposition(cut.left[:, at], cut.right[at], cut.sigma[at])


def whole(decomposition: Decomposition) -> Decomposition:
    """The decomposition with its factors: two looks at a lazy one could make it twice."""
    return decomposition if isinstance(decomposition, Decomposition) else decomposition.whole()


def check_decompositions(decompositions: Cuts, modules: Mapping, weighting: str) -> None:
    """Raises ValueError for one that lacks, or is of another weight or ruler."""
    for name, module in modules.items():
        if name not in decompositions:
            raise ValueError(f"decompositions lack layer {name!r}")
        cut, shape = decompositions[name], tuple(module.weight.shape)
        subject = f"the decomposition of layer {name!r}"
        if tuple(cut.shape) != shape:
            raise ValueError(f"{subject} has another shape than its weight {shape}")
        if cut.ruler not in ("", weighting):
            raise ValueError(f"{subject} is by {cut.ruler!r}, the method's ruler is {weighting!r}")
        if not cut.is_of(module.weight):
            raise ValueError(f"{subject} is of other weights: decompose again after training")
