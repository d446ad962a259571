"""How large is an effect, how sure is it, and what may be said of it?

The unit of replication is a seed: differences are paired inside a seed, and the interval is over
seeds. Two units: the natural one (points of accuracy, nats of perplexity), and ratio points, which
ask how much more could be removed at the same score. They make steep and flat places comparable.
"""

from typing import NamedTuple

import numpy as np
import pandas
from scipy import optimize, stats

LEVEL = 0.95
FEWEST = 3  # seeds: with fewer an interval says more of their luck than of the effect
MARGIN = 1.0  # ratio points: effects inside ± MARGIN are as good as none
RATIO_POINTS = "ratio points"
TREATED = 0.1  # share by which the tail must fall against the control's, to be a test of prehab

# Which status an effect has, and what that means.
STATUSES = {
    "supported": "the interval lies above 0",
    "reversed": "the interval lies below 0",
    "equivalent": f"the interval lies within ± {MARGIN:g} ratio point",
    "excluded at the paper's size": "the interval ends below the paper's effect",
    "undecided": "none of these: the run is too small to say",
    "not treated": "the surrogate left the tail as the control did: no test of prehab",
}


class Effect(NamedTuple):
    """Mean of paired differences over seeds, with its t interval at LEVEL, in their unit."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def half_width(self) -> float:
        """The smallest effect that these seeds could have told from 0."""
        return (self.high - self.low) / 2


def effect(differences) -> Effect:
    """The t interval of the mean of paired differences, (seeds,), in their unit.

    Source: Student's t with seeds − 1 degrees of freedom; it covers a normal mean at its level from
    two seeds on, where a bootstrap over five covers some 85 %. Raises ValueError for fewer than two
    seeds, or a difference that is not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"differences of shape {values.shape}: give one a seed, of two at least")
    if not np.isfinite(values).all():
        raise ValueError("differences must be finite numbers")
    mean = float(values.mean())
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return Effect(mean, mean - float(half), mean + float(half), len(values))


def merit(metric: str, value):
    """A score so that higher is better and differences mean something: perplexity as −nats."""
    return -np.log(value) if metric == "perplexity" else value


class Curve:
    """Merit of a model under a plain cut, as a function of the fraction removed, and its inverse.

    removed (k,): fractions, 0 among them. merits (k,): what is left there, higher being better.
    Noise that makes a harder cut score better is averaged out (isotonic regression). Raises
    ValueError for fewer than two points, or none at 0.
    """

    def __init__(self, removed, merits):
        points = pandas.Series(np.asarray(merits, dtype=np.float64), index=removed).sort_index()
        if len(points) < 2 or points.index[0] != 0 or not np.isfinite(points).all():
            raise ValueError("a curve needs finite merits at 0 removed and at one more fraction")
        falling = optimize.isotonic_regression(points, increasing=False).x
        # A flat piece has one merit at several fractions: it counts as its middle.
        places = pandas.Series(points.index).groupby(falling).mean()
        self.merits, self.removed = places.index.to_numpy(), places.to_numpy()

    def removed_at(self, merit: float) -> float:
        """The fraction removed at which the plain cut has this merit; NaN beyond the curve's ends.

        No fraction would be right there, and the end's would make any two such merits equal.
        """
        return float(np.interp(merit, self.merits, self.removed, left=np.nan, right=np.nan))

    def ratio_points(self, merit: float, other: float) -> float:
        """How many per cent more could be removed at `merit` than at `other`, at equal scores."""
        return 100 * (self.removed_at(other) - self.removed_at(merit))


def status(
    effect: Effect, paper: float | None = None, treated: bool = True, margin: float | None = MARGIN
) -> str:
    """The key of STATUSES of an effect. paper: the paper's effect, in the same unit.

    treated: whether the arm's tail at the planned ranks fell by TREATED against the control's.
    margin: what counts as none, in the effect's unit; None where nobody said what is small.
    """
    if not treated:
        return "not treated"
    if effect.low > 0:
        return "supported"
    if effect.high < 0:
        return "reversed"
    if margin is not None and -margin <= effect.low and effect.high <= margin:
        return "equivalent"
    if paper is not None and effect.high < paper:
        return "excluded at the paper's size"
    return "undecided"


def written(value: float, unit: str, sign: str = "", more: bool = False) -> str:
    """A number in words, as "−1.2": one digit where large or in ratio points, else more.

    sign: "+" writes it also where it is positive. more: with one digit more.
    """
    digits = 1 if unit == RATIO_POINTS or abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    digits += more
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")


def described(effect: Effect, unit: str) -> str:
    """An effect in words, as "+0.3 [−1.2, 1.8] ratio points"; no end beside 0 is written as 0."""
    ends = (effect.low, effect.high)
    more = any(end and not float(written(end, unit).replace("−", "-")) for end in ends)
    low, high = (written(end, unit, more=more) for end in ends)
    return f"{written(effect.mean, unit, '+', more)} [{low}, {high}] {unit}"


def relative_tail(cuts: dict, ranks: dict[str, int | None]) -> float:
    """Mean over layers of Σ_{i>r} σᵢ² / Σ σᵢ², what a cut at these ranks drops of each W L.

    cuts: layer -> Decomposition. A layer with rank None is not cut.
    """
    shares = []
    for name, rank in ranks.items():
        if rank is not None:
            energy = cuts[name].sigma.double().square()
            shares.append(float(energy[rank:].sum() / energy.sum()))
    return sum(shares) / len(shares)
