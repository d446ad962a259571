"""What surgery did, recounted from the modules: what went, from where, and what was left out."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from prehab_lib.budget import check_removed
from prehab_lib.factors import LowRankLinear
from prehab_lib.rivals.shared import Ranks, pattern

SHOWN = 5  # names of a sentence; of what was left out, the largest


@dataclass(frozen=True)
class Report:
    """What surgery did.

    removed, achieved: fraction of the compressed layers' weights taken away, asked (None where the
    ranks were given) and true, without biases.  parameters, bytes: of the whole model afterwards.
    kept_dense: where no rank saves anything, or spared.  at_floor: whose rank 1 is over budget.
    held, achieved_of_model: shares of the whole model's parameters, that of the compressed layers
    before and what was taken away.  left_out: what else holds parameters, and how many.
    """

    removed: float | None
    achieved: float
    ranks: Ranks
    parameters: int
    bytes: int
    kept_dense: list[str]
    at_floor: list[str]
    held: float
    achieved_of_model: float
    left_out: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        asked = "ranks were given" if self.removed is None else f"asked {float(self.removed):.0%}"
        text = f"removed {self.achieved:.1%} of {len(self.ranks)} layers' weights ({asked}), which"
        text += f" is {self.achieved_of_model:.1%} of the model: the layers held {self.held:.1%}"
        if self.kept_dense:
            names, more = self.kept_dense[:SHOWN], len(self.kept_dense) - SHOWN
            text += f"; dense: {', '.join(names)}" + f" and {more} more" * (more > 0)
        if self.at_floor:
            text += f"; rank 1 exceeds the budget of: {', '.join(self.at_floor)}"
        return f"{text}; left out: {self.beside()}"

    def beside(self) -> str:
        """What was left out, the largest first, as shares of the model before."""
        whole = self.parameters / (1 - self.achieved_of_model)
        parts = [f"{what} {count / whole:.1%}" for what, count in self.left_out.items()]
        rest = sum([*self.left_out.values()][SHOWN:]) / whole
        more = [f"{len(parts) - SHOWN} more {rest:.1%}"] if len(parts) > SHOWN else []
        return "; ".join(parts[:SHOWN] + more) or "nothing"


def left_out(model: nn.Module, layers: Iterable[str]) -> dict[str, int]:
    """What holds parameters beside the weights of `layers` -> how many, the largest first."""
    inside = tuple(f"{name}." for name in layers)
    places: dict[tuple[str, str], list[int]] = {}
    for name, parameter in model.named_parameters():
        if name.startswith(inside) and parameter.dim() > 1:
            continue
        parent, _, leaf = name.rpartition(".")
        kind = type(model.get_submodule(parent)).__name__
        place = pattern(parent if leaf == "weight" else name)
        if parameter.dim() > 2 and "Conv" not in kind:
            kind = f"{parameter.dim()}-D weights of {kind}"
        if parameter.dim() < 2:
            place, kind = "", "vectors such as norms and biases"
        places.setdefault((place, kind), []).append(parameter.numel())
    found = {}
    for (place, kind), sizes in sorted(places.items(), key=lambda item: -sum(item[1])):
        found[f"{place} ({len(sizes)} {kind})" if place else kind] = sum(sizes)
    return found


def weights_of(module: nn.Module) -> int:
    """Numbers a linear layer stores for its weight, dense or low-rank, without the bias."""
    parts = (module.U, module.V) if isinstance(module, LowRankLinear) else (module,)
    return sum(part.weight.numel() for part in parts)


def recount(model: nn.Module, removed: float | None, ranks: Ranks, before: dict) -> Report:
    """What was done to the layers of `ranks`, whose weights held `before` numbers each."""
    after = {name: weights_of(model.get_submodule(name)) for name in ranks}
    kept = 1 if removed is None else 1 - check_removed(removed)
    ones, parameters = [name for name, rank in ranks.items() if rank == 1], [*model.parameters()]
    now, held, left = sum(p.numel() for p in parameters), sum(before.values()), sum(after.values())
    return Report(
        removed=removed,
        achieved=1 - left / held,
        ranks=dict(ranks),
        parameters=now,
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        kept_dense=[name for name, rank in ranks.items() if rank is None],
        at_floor=[name for name in ones if after[name] > kept * before[name]],
        held=held / (now + held - left),
        achieved_of_model=(held - left) / (now + held - left),
        left_out=left_out(model, ranks),
    )
