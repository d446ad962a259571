"""Exercises of notebook 05, prehab on a LLaMA: perplexity by hand, masked prompts, and the cache of
keys and values.
"""

import math

from prehab_lib.exercises import Exercise, slips


def _nats(texts):
    return [-math.log(p) for text in texts for p in text]


def _perplexity(texts):
    nats = _nats(texts)
    return math.exp(sum(nats) / len(nats))


def _mean_of_texts(texts):
    return sum(_perplexity([text]) for text in texts) / len(texts)


def _labels(ids, prompt):
    return [-100 if place < prompt or token == 0 else token for place, token in enumerate(ids)]


def _cached(depth, heads, size, rank):
    each = heads * size
    return 2 * depth * (each if rank is None else min(rank, each))


def _shares(svd_llm, control, prehab):
    return 100 * (control / svd_llm - 1), 100 * (prehab / control - 1)


EXERCISES = {
    "5.1": Exercise(
        cases=[
            ([[0.5, 0.25, 0.125]],),
            ([[0.5], [0.1, 0.1, 0.2, 0.4]],),
            ([[0.9, 0.8], [0.05, 0.3, 0.6]],),
        ],
        withheld=[([[0.25, 0.5], [0.75], [0.1, 0.2, 0.3]],)],
        solution=_perplexity,
        slips=slips(
            _mean_of_texts,
            "that is the mean of the texts' perplexities: a short text would count like a long one",
            lambda texts: math.exp(sum(_nats(texts))),
            "divide by the number of tokens before you take exp",
            lambda texts: sum(_nats(texts)) / len(_nats(texts)),
            "that is the loss in nats: take exp of it",
            lambda texts: 2 ** (sum(_nats(texts)) / len(_nats(texts))),
            "the logarithm is natural, so the power is of e: with 2 take the logarithm to base 2",
            lambda texts: sum(1 / p for text in texts for p in text) / sum(map(len, texts)),
            "that is the mean of 1/p: the mean is taken of the logarithms",
        ),
    ),
    "5.2": Exercise(
        cases=[([5, 6, 7, 8], 2), ([9, 4, 3, 2, 0, 0], 3), ([7, 1, 2], 1)],
        withheld=[([4, 5, 6, 0, 0], 1), ([3, 2, 1, 8, 9], 4)],
        solution=_labels,
        slips=slips(
            (
                lambda ids, prompt: [
                    -100 if place < prompt else token for place, token in enumerate(ids)
                ]
            ),
            "padding is scored: where the id is 0 nothing is to be learnt",
            (
                lambda ids, prompt: [
                    token if place < prompt else -100 for place, token in enumerate(ids)
                ]
            ),
            "the other way round: the answer is scored, not the prompt",
            lambda ids, prompt: _labels(ids, prompt + 1),
            "the first token of the answer is scored too: the model shifts labels itself",
            lambda ids, prompt: _labels(ids, prompt - 1),
            "one token of the prompt is scored: the model shifts labels itself",
            lambda ids, prompt: [-100 if token == 0 else token for token in ids],
            "the prompt is scored: mask it",
        ),
    ),
    "5.3": Exercise(
        cases=[(32, 32, 128, None), (32, 32, 128, 1638), (32, 8, 128, 1638), (32, 8, 128, 655)],
        withheld=[(12, 12, 64, 500), (12, 4, 64, 500), (2, 2, 8, None)],
        solution=_cached,
        slips=slips(
            lambda depth, heads, size, rank: _cached(depth, heads, size, rank) / 2,
            "keys and values: two of each",
            (lambda depth, heads, size, rank: 2 * depth * (heads * size if rank is None else rank)),
            "a rank above heads · size makes the cache larger: keep what is smaller",
            (
                lambda depth, heads, size, rank: (
                    2 * depth * heads * (size if rank is None else min(rank, size))
                )
            ),
            "the rank is of the whole matrix, not of each head",
            lambda depth, heads, size, rank: _cached(1, heads, size, rank),
            "every layer keeps its own: times depth",
        ),
    ),
    "5.4": Exercise(
        cases=[(100.0, 90.0, 81.0), (13.73, 12.0, 11.12), (7.94, 7.0, 7.03)],
        withheld=[(50.0, 40.0, 44.0)],
        solution=_shares,
        slips=slips(
            (
                lambda svd_llm, control, prehab: (
                    100 * (control / svd_llm - 1),
                    100 * (prehab / svd_llm - 1),
                )
            ),
            "what the surrogate adds is measured against the control, not against SVD-LLM",
            (lambda svd_llm, control, prehab: tuple(-x for x in _shares(svd_llm, control, prehab))),
            "the sign: a lower perplexity is a negative change",
            (
                lambda svd_llm, control, prehab: tuple(
                    x / 100 for x in _shares(svd_llm, control, prehab)
                )
            ),
            "per cent: times 100",
            lambda svd_llm, control, prehab: (control - svd_llm, prehab - control),
            "those are differences of perplexity: divide by where each starts from",
        ),
    ),
}
