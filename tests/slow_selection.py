"""The selection rule once more, without queues: at every step all layers are looked at and everything is counted again.

And the instances on which both are compared.
"""

import itertools
import math
import random
from fractions import Fraction

import torch

from prehab_lib.rivals.shared import ACCOUNTINGS
from prehab_lib.rivals.zero_sum import Selection, select

BALANCED, ALL = {"zero_sum"}, {"most_negative", "magnitude_all"}
SHAPES = [(1, 7), (2, 2), (3, 9), (8, 8), (6, 10), (12, 5), (9, 4)]


def instance(seed: int) -> dict:
    """Arguments of `select`: up to six layers, half of the seeds with many ties, a budget that can be met."""
    draw = random.Random(seed)
    shapes = {name: draw.choice(SHAPES) for name in draw.sample(["h.0.q", "h.0.k", "h.10.q", "h.2.q", "a", "z"], 5)}
    shapes = dict(itertools.islice(shapes.items(), draw.randint(1, 5))) | {"fc": (10, 11)}
    floor, accounting = draw.choice([0.0, 0.1, 0.3, 0.5]), draw.choice(list(ACCOUNTINGS))
    number = (lambda: draw.randint(-2, 2) / 2) if seed % 2 else (lambda: draw.gauss(0, 1))
    changes = {name: [number() for _ in range(min(shape))] for name, shape in shapes.items()}
    sigma = {name: sorted((abs(number()) for _ in range(min(s))), reverse=True) for name, s in shapes.items()}
    most = Fraction(reachable(shapes, floor, accounting), sum(map(math.prod, shapes.values())))
    removed = max(1, math.floor(most * 1000 * draw.choice([1, Fraction(draw.randint(1, 99), 100)]))) / 1000
    given = dict(shapes=shapes, removed=removed, sigma=sigma, floor=floor, accounting=accounting)
    return given | {"changes": changes}


def crowd(seed: int, layers: int = 12, rank: int = 24, removed: float = 0.05) -> dict:
    """Many layers of one shape and a small budget, which few of them are needed for: drops of most are undone."""
    draw = random.Random(seed)
    shapes = {f"h.{i}": (rank, rank) for i in range(layers)}
    changes = {name: [draw.gauss(0, 1) * 0.8**i for i in range(rank)] for name in shapes}
    sigma = {name: [0.9**i for i in range(rank)] for name in shapes}
    return dict(shapes=shapes, removed=removed, sigma=sigma, floor=0.0, accounting="break_even", changes=changes)


def chosen(given: dict, **more) -> Selection:
    """`select` with trace on the instance, as tensors."""
    drawn = {part: given[part].items() for part in ("changes", "sigma")}
    tensors = {part: {name: torch.tensor(x, dtype=torch.float64) for name, x in items} for part, items in drawn.items()}
    return select(**(given | tensors), trace=True, **more)


def stored(shape, rank, accounting) -> int:
    """Numbers a layer holds with that many components left."""
    m, n = shape
    if accounting == "remap":
        return rank * max(m, n)
    return rank * (m + n) if rank * (m + n) < m * n else m * n


def least_rank(shape, floor, accounting) -> int:
    """The floor of a layer; its full rank where no rank saves anything."""
    ranks = range(1, min(shape) + 1)
    saving = [rank for rank in ranks if stored(shape, rank, accounting) < math.prod(shape)]
    if not saving:
        return min(shape)
    largest = min(shape) if accounting == "remap" else max(saving)
    return next(rank for rank in ranks if rank >= Fraction(str(floor)) * largest)


def reachable(shapes, floor, accounting) -> int:
    return sum(math.prod(s) - stored(s, least_rank(s, floor, accounting), accounting) for s in shapes.values())


def slowly(changes, shapes, removed, rule, sigma, floor, accounting, replan=False) -> dict:
    """ranks, kept: layer -> numbers of the components left, planned, steps."""
    frozen = set()
    for _ in range(4):
        left, planned, steps = _walk(changes, shapes, removed, rule, sigma, floor, accounting, frozen)
        saves = {name: stored(shape, len(left[name]), accounting) < math.prod(shape) for name, shape in shapes.items()}
        undone = {name for name, shape in shapes.items() if len(left[name]) < min(shape) and not saves[name]}
        if not (replan and undone):
            break
        frozen |= undone
    least = {name: least_rank(shape, 0, accounting) for name, shape in shapes.items()}
    stays = {name: accounting == "remap" and least[name] < min(shape) for name, shape in shapes.items()}
    kept = {name: left[name] for name in shapes if saves[name] or stays[name]}
    ranks = {name: len(left[name]) if name in kept else None for name in shapes}
    return {"ranks": ranks, "kept": kept, "planned": planned, "steps": steps}


def _walk(changes, shapes, removed, rule, sigma, floor, accounting, frozen):
    left = {name: list(range(min(shape))) for name, shape in shapes.items()}
    waiting = {name: place for place, name in enumerate(sorted(shapes))}
    least = {name: least_rank(shape, floor, accounting) for name, shape in shapes.items()}
    total = sum(map(math.prod, shapes.values()))
    target, clock, balance, steps = math.floor(Fraction(str(removed)) * total), len(shapes), 0.0, []
    while total - sum(stored(shapes[name], len(found), accounting) for name, found in left.items()) < target:
        fronts = []
        for name in shapes:
            if len(left[name]) > least[name] and name not in frozen:
                candidates = left[name] if rule in ALL else left[name][-1:]
                score = {i: _score(rule, changes[name][i], sigma[name][i]) for i in candidates}
                i = min(reversed(candidates), key=score.get)
                fronts.append((score[i], waiting[name], name, i))
        if rule in BALANCED:
            rising = [front for front in fronts if changes[front[2]][front[3]] >= 0]
            falling = [front for front in fronts if changes[front[2]][front[3]] < 0]
            fronts = (rising or falling) if balance <= 0 else (falling or rising)
        _, _, name, i = min(fronts)
        left[name].remove(i)
        balance += changes[name][i]
        steps.append((name, i, changes[name][i], balance))
        waiting[name], clock = clock, clock + 1
    return left, balance, steps


def _score(rule, change, sigma):
    return {"sigma": sigma, "most_negative": change}.get(rule, abs(change))
