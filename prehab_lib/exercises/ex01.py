"""Exercises of notebook 01, surrogates of the rank."""

import torch


def ratio(sigma):
    return sigma.sum() ** 2 / (sigma**2).sum()


def force(sigma):
    force = 2 * sigma / sigma[0] ** 2
    force[0] -= 2 * (sigma**2).sum() / sigma[0] ** 3
    return force


def pieces(W, L):
    M = W @ L
    U, sigma, Vt = torch.linalg.svd(M, full_matrices=False)
    return M, U @ Vt, sigma, ratio(sigma)


def gradient_in_m(W, L):
    M, polar, sigma, S = pieces(W, L)
    return 2 / (sigma**2).sum() * (sigma.sum() * polar - S * M)


def one_denominator(W, L):
    M, polar, sigma, S = pieces(W, L)
    return 2 * (sigma.sum() / (sigma**2).sum() * polar - S * M) @ L.T


def as_printed(W, L):
    M, _, sigma, S = pieces(W, L)
    identity = torch.eye(len(sigma), dtype=M.dtype)
    return 2 * M @ (torch.diag(sigma) / (sigma**2).sum() - S * identity) @ L.T


def scaled_lam(lam, surrogate, factor):
    return lam * factor if surrogate == "nuclear" else lam
