"""Exercises of notebook 05, prehab on a LLaMA: perplexity, masked prompts, the cache."""

import math
from statistics import fmean

from prehab_lib.exercises import load


def _nats(texts):
    return [-math.log(p) for text in texts for p in text]


def _perplexity(texts):
    return math.exp(fmean(_nats(texts)))


def _labels(ids, prompt):
    return [-100 if place < prompt or token == 0 else token for place, token in enumerate(ids)]


def _cached(depth, heads, size, rank):
    width = heads * size
    return 2 * depth * (width if rank is None else min(rank, width))


def _changes(svd_llm, control, prehab):
    return 100 * (control / svd_llm - 1), 100 * (prehab / control - 1)


ANSWERS = {
    "5.1": dict(
        solution=_perplexity,
        mean_of_texts=lambda texts: fmean(_perplexity([text]) for text in texts),
        not_divided=lambda texts: math.exp(sum(_nats(texts))),
        loss_in_nats=lambda texts: fmean(_nats(texts)),
        power_of_two=lambda texts: 2 ** fmean(_nats(texts)),
        mean_of_inverses=lambda texts: fmean(1 / p for text in texts for p in text),
    ),
    "5.2": dict(
        solution=_labels,
        padding_scored=lambda ids, prompt: [-100] * prompt + ids[prompt:],
        prompt_for_answer=lambda ids, prompt: ids[:prompt] + [-100] * len(ids[prompt:]),
        one_too_few=lambda ids, prompt: _labels(ids, prompt + 1),
        one_too_many=lambda ids, prompt: _labels(ids, prompt - 1),
        prompt_scored=lambda ids, prompt: _labels(ids, 0),
    ),
    "5.3": dict(
        solution=_cached,
        keys_alone=lambda depth, heads, size, rank: _cached(depth, heads, size, rank) / 2,
        rank_not_bounded=lambda depth, heads, size, rank: 2 * depth * (rank or heads * size),
        rank_of_each_head=lambda depth, heads, size, rank: heads * _cached(depth, 1, size, rank),
        one_layer=lambda depth, heads, size, rank: _cached(1, heads, size, rank),
    ),
    "5.4": dict(
        solution=_changes,
        both_against_svd_llm=lambda base, *others: tuple(100 * (x / base - 1) for x in others),
        sign_turned=lambda *scores: tuple(-change for change in _changes(*scores)),
        as_fractions=lambda *scores: tuple(change / 100 for change in _changes(*scores)),
        differences=lambda svd_llm, control, prehab: (control - svd_llm, prehab - control),
    ),
}
EXERCISES = load("ex05.yaml", ANSWERS)
