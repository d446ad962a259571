"""Exercises of notebook 05, prehab on a LLaMA: perplexity, masked prompts, the cache."""

import math
from statistics import fmean


def nats(texts):
    return [-math.log(p) for text in texts for p in text]


def perplexity(texts):
    return math.exp(fmean(nats(texts)))


def labels(ids, prompt):
    return [-100 if place < prompt or token == 0 else token for place, token in enumerate(ids)]


def cached(depth, heads, size, rank):
    width = heads * size
    return 2 * depth * (width if rank is None else min(rank, width))


def change(value, base):
    return 100 * (value / base - 1)
