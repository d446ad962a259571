"""Exercises of notebook 01, surrogates of the rank."""

import torch


def pull(sigma):
    pull = torch.ones_like(sigma) / sigma[0]
    pull[0] -= sigma.sum() / sigma[0] ** 2
    return pull


def pieces(R, W, L):
    M = R @ W @ L
    U, sigma, Vt = torch.linalg.svd(M, full_matrices=False)
    return M, U @ Vt, sigma, sigma.sum() ** 2 / (sigma**2).sum()


def gradient_in_m(R, W, L):
    M, polar, sigma, S = pieces(R, W, L)
    return 2 / (sigma**2).sum() * (sigma.sum() * polar - S * M)


def one_denominator(R, W, L):
    M, polar, sigma, S = pieces(R, W, L)
    return R.T @ (2 * (sigma.sum() / (sigma**2).sum() * polar - S * M)) @ L.T


def as_printed(R, W, L):
    M, _, sigma, S = pieces(R, W, L)
    identity = torch.eye(len(sigma), dtype=M.dtype)
    return R.T @ (2 * M @ (torch.diag(sigma) / (sigma**2).sum() - S * identity)) @ L.T


def scaled_lam(lam, surrogate, factor):
    return lam * factor if surrogate == "nuclear" else lam
