"""Exercises of notebook 00, how to read this book: ranks, errors and the readings of "ratio"."""

import math
from fractions import Fraction

from prehab_lib.budget import rank_for
from prehab_lib.exercises import load, tensors


def _allowed(m, n, removed):
    return (1 - Fraction(str(removed))) * m * n / (m + n)


def _share_kept(m, n, rank):
    return rank * (m + n) / (m * n)


ANSWERS = {
    "0.1": dict(
        solution=lambda m, n, removed: rank_for((m, n), removed=removed),
        in_binary=lambda m, n, removed: math.floor((1 - removed) * m * n / (m + n)),
        nearest_rank=lambda m, n, removed: round(_allowed(m, n, removed)),
        rounded_up=lambda m, n, removed: math.ceil(_allowed(m, n, removed)),
        rank_of_removed=lambda m, n, removed: math.floor(removed * Fraction(m * n, m + n)),
        share_of_rank=lambda m, n, removed: math.floor((1 - Fraction(str(removed))) * min(m, n)),
        share_of_rank_in_binary=lambda m, n, removed: int((1 - removed) * min(m, n)),
        share_of_rank_rounded=lambda m, n, removed: round((1 - removed) * min(m, n)),
        share_of_rank_rounded_up=lambda m, n, removed: math.ceil((1 - removed) * min(m, n)),
        full_rank=lambda m, n, removed: min(m, n),
    ),
    "0.2": dict(
        arguments=tensors,
        solution=lambda s, rank: s[rank:].square().sum().sqrt(),
        squared_error=lambda s, rank: s[rank:].square().sum(),
        plain_sum=lambda s, rank: s[rank:].sum(),
        what_was_kept=lambda s, rank: s[:rank].square().sum().sqrt(),
        one_too_few=lambda s, rank: s[rank + 1 :].square().sum().sqrt(),
        spectral_norm=lambda s, rank: s[rank] if rank < len(s) else s.new_zeros(()),
    ),
    "0.3": dict(
        solution=lambda m, n, share: _share_kept(m, n, math.ceil(share * min(m, n))),
        share_of_parameters=lambda m, n, share: share,
        share_removed=lambda m, n, share: 1 - share,
        one_factor=lambda m, n, share: math.ceil(share * min(m, n)) * m / (m * n),
        rounded_down=lambda m, n, share: _share_kept(m, n, math.floor(share * min(m, n))),
        of_the_longer_side=lambda m, n, share: _share_kept(m, n, math.ceil(share * max(m, n))),
        of_the_outputs=lambda m, n, share: _share_kept(m, n, math.ceil(share * m)),
        of_the_inputs=lambda m, n, share: _share_kept(m, n, math.ceil(share * n)),
    ),
    "0.4": dict(
        arguments=tensors,
        solution=lambda w, rms: (w * rms).argmax(),
        plain_svd=lambda w, rms: w.argmax(),
        loudest_input=lambda w, rms: rms.argmax(),
        gram_for_its_root=lambda w, rms: (w * rms.square()).argmax(),
        smallest_first=lambda w, rms: (w * rms).argmin(),
        one_root_too_many=lambda w, rms: (w * rms.sqrt()).argmax(),
        divided_by_rms=lambda w, rms: (w / rms).argmax(),
    ),
}
EXERCISES = load("ex00.yaml", ANSWERS)
