"""Exercises of notebook 03, prehab on a vision transformer: gains, controls, ranks of qkv."""

from statistics import fmean

from prehab_lib.budget import rank_for


def share_of_training(svd_llm, control, prehab):
    return (fmean(control) - fmean(svd_llm)) / (fmean(prehab) - fmean(svd_llm))


def mean_of_shares(svd_llm, control, prehab):
    seeds = zip(svd_llm, control, prehab, strict=True)
    return fmean((some - start) / (whole - start) for start, some, whole in seeds)


def of_qkv(d, removed):
    return [rank_for((3 * d, d), removed), rank_for((d, d), removed)]
