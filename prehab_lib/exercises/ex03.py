"""Exercises of notebook 03, prehab on a vision transformer: gains, controls, achieved budgets."""

from prehab_lib.exercises import Exercise, slips


def _kept(shapes, ranks):
    return [
        m * n if rank is None else rank * (m + n)
        for (m, n), rank in zip(shapes, ranks, strict=True)
    ]


def _achieved(shapes, ranks):
    return 1 - sum(_kept(shapes, ranks)) / sum(m * n for m, n in shapes)


def _mean_of_fractions(shapes, ranks):
    kept = _kept(shapes, ranks)
    return sum(1 - k / (m * n) for k, (m, n) in zip(kept, shapes, strict=True)) / len(shapes)


def _dense_left_out(shapes, ranks):
    cut = [(shape, rank) for shape, rank in zip(shapes, ranks, strict=True) if rank is not None]
    return _achieved([shape for shape, _ in cut], [rank for _, rank in cut])


def _dense_counted_as_gone(shapes, ranks):
    return _achieved(shapes, [rank or 0 for rank in ranks])


EXERCISES = {
    "3.1": Exercise(
        cases=[(48.12, 28.38), (71.92, 67.83), (40.0, 50.0)],
        withheld=[(55.5, 50.0), (10.0, 80.0)],
        solution=lambda ours, baseline: 100 * (ours / baseline - 1),
        slips=slips(
            lambda ours, baseline: ours - baseline,
            "that is the gain in points: divide it by the baseline",
            lambda ours, baseline: 100 * (ours - baseline) / ours,
            "the gain is measured in units of the baseline, not of the new score",
            lambda ours, baseline: ours / baseline - 1,
            "right as a fraction: the figure shows per cent",
            lambda ours, baseline: 100 * ours / baseline,
            "that is the ratio: a gain of nothing must give 0",
        ),
    ),
    "3.2": Exercise(
        cases=[(60.0, 63.0, 66.0), (60.0, 58.0, 68.0), (28.0, 40.0, 48.0)],
        withheld=[(50.0, 52.0, 60.0), (30.0, 29.0, 35.0)],
        solution=lambda svd_llm, control, prehab: (control - svd_llm) / (prehab - svd_llm),
        slips=slips(
            lambda svd_llm, control, prehab: (prehab - control) / (prehab - svd_llm),
            "that is the surrogate's share: the control's is the rest",
            lambda svd_llm, control, prehab: control / prehab,
            "compare gains, not scores: both start from SVD-LLM",
            lambda svd_llm, control, prehab: max(0.0, (control - svd_llm) / (prehab - svd_llm)),
            "do not cut it off at 0: fine-tuning alone can hurt, and then the share is negative",
        ),
    ),
    "3.3": Exercise(
        cases=[
            ([(32, 32), (128, 32), (100, 32)], [6, 10, None]),
            ([(8, 8), (64, 64)], [2, 8]),
            ([(1, 32), (32, 32)], [None, 4]),
        ],
        withheld=[([(16, 48), (5, 5)], [4, None]), ([(10, 20)], [3])],
        solution=_achieved,
        slips=slips(
            _mean_of_fractions,
            "a mean of the layers' fractions weighs a small layer like a large one: add first",
            lambda shapes, ranks: 1 - _achieved(shapes, ranks),
            "that is what was kept",
            _dense_left_out,
            "a layer that stayed dense still counts: its weights were asked for and not removed",
            _dense_counted_as_gone,
            "None is a layer kept whole, with m n weights, not one of rank 0",
        ),
    ),
}
