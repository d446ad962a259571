"""Exercises of notebook 03, prehab on a vision transformer: gains, controls, achieved budgets."""

from statistics import fmean

from prehab_lib.exercises import load


def _share_of_training(svd_llm, control, prehab):
    return (control - svd_llm) / (prehab - svd_llm)


def _kept(shape, rank):
    m, n = shape
    return m * n if rank is None else rank * (m + n)


def _achieved(shapes, ranks):
    return 1 - sum(map(_kept, shapes, ranks)) / sum(m * n for m, n in shapes)


def _dense_left_out(shapes, ranks):
    cut = [shape for shape, rank in zip(shapes, ranks, strict=True) if rank is not None]
    return _achieved(cut, [rank for rank in ranks if rank is not None])


ANSWERS = {
    "3.1": dict(
        solution=lambda ours, baseline: 100 * (ours / baseline - 1),
        gain_in_points=lambda ours, baseline: ours - baseline,
        in_units_of_the_new_score=lambda ours, baseline: 100 * (ours - baseline) / ours,
        as_a_fraction=lambda ours, baseline: ours / baseline - 1,
        ratio=lambda ours, baseline: 100 * ours / baseline,
    ),
    "3.2": dict(
        solution=_share_of_training,
        share_of_the_surrogate=lambda *scores: 1 - _share_of_training(*scores),
        ratio_of_scores=lambda svd_llm, control, prehab: control / prehab,
        cut_off_at_zero=lambda *scores: max(0.0, _share_of_training(*scores)),
    ),
    "3.3": dict(
        arguments=lambda shapes, ranks: ([tuple(shape) for shape in shapes], ranks),
        solution=_achieved,
        mean_of_fractions=lambda shapes, ranks: fmean(
            _achieved([shape], [rank]) for shape, rank in zip(shapes, ranks, strict=True)
        ),
        what_was_kept=lambda shapes, ranks: 1 - _achieved(shapes, ranks),
        dense_left_out=_dense_left_out,
        dense_counted_as_gone=lambda shapes, ranks: _achieved(shapes, [r or 0 for r in ranks]),
    ),
}
EXERCISES = load("ex03.yaml", ANSWERS)
