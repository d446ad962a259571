"""Exercises of notebook 03, prehab on a vision transformer: gains, controls, achieved budgets."""


def share_of_training(svd_llm, control, prehab):
    return (control - svd_llm) / (prehab - svd_llm)


def kept(shape, rank):
    m, n = shape
    return m * n if rank is None else rank * (m + n)


def achieved(shapes, ranks):
    return 1 - sum(map(kept, shapes, ranks)) / sum(m * n for m, n in shapes)


def dense_left_out(shapes, ranks):
    cut = [shape for shape, rank in zip(shapes, ranks, strict=True) if rank is not None]
    return achieved(cut, [rank for rank in ranks if rank is not None])
