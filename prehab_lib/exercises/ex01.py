"""Exercises of notebook 01, surrogates of the rank."""

import torch

from prehab_lib.exercises import load, tensors


def _ratio(sigma):
    return sigma.sum() ** 2 / (sigma**2).sum()


def _force(sigma):
    force = 2 * sigma / sigma[0] ** 2
    force[0] -= 2 * (sigma**2).sum() / sigma[0] ** 3
    return force


def _pieces(W, L):
    M = W @ L
    U, sigma, Vt = torch.linalg.svd(M, full_matrices=False)
    return M, U @ Vt, sigma, _ratio(sigma)


def _gradient_in_m(W, L):
    M, polar, sigma, S = _pieces(W, L)
    return 2 / (sigma**2).sum() * (sigma.sum() * polar - S * M)


def _one_denominator(W, L):
    M, polar, sigma, S = _pieces(W, L)
    return 2 * (sigma.sum() / (sigma**2).sum() * polar - S * M) @ L.T


def _as_printed(W, L):
    M, _, sigma, S = _pieces(W, L)
    identity = torch.eye(len(sigma), dtype=M.dtype)
    return 2 * M @ (torch.diag(sigma) / (sigma**2).sum() - S * identity) @ L.T


def _scaled_lam(lam, surrogate, factor):
    return lam * factor if surrogate == "nuclear" else lam


ANSWERS = {
    "1.1": dict(
        arguments=tensors,
        solution=_ratio,
        stable_rank=lambda s: (s**2).sum() / s[0] ** 2,
        top_not_squared=lambda s: s.sum() / (s**2).sum(),
        ratio_of_squares=lambda s: (s**2).sum() ** 2 / (s**4).sum(),
        root_of_the_ratio=lambda s: s.sum() / (s**2).sum().sqrt(),
        nuclear_over_spectral=lambda s: s.sum() / s[0],
    ),
    "1.2": dict(
        arguments=tensors,
        solution=_force,
        top_not_differentiated=lambda sigma: 2 * sigma / sigma[0] ** 2,
        zero_at_top=lambda sigma: 2 * sigma / sigma[0] ** 2 * (sigma < sigma[0]),
        sign_turned=lambda sigma: -_force(sigma),
        half=lambda sigma: _force(sigma) / 2,
    ),
    "1.3": dict(
        arguments=tensors,
        solution=lambda W, L: _gradient_in_m(W, L) @ L.T,
        gradient_in_m=_gradient_in_m,
        without_transpose=lambda W, L: _gradient_in_m(W, L) @ L,
        one_denominator=_one_denominator,
        as_printed=_as_printed,
        sign_turned=lambda W, L: -_gradient_in_m(W, L) @ L.T,
    ),
    "1.4": dict(
        solution=lambda lam, tokens, surrogate: _scaled_lam(lam, surrogate, tokens**-0.5),
        unchanged=lambda lam, tokens, surrogate: lam,
        by_tokens=lambda lam, tokens, surrogate: _scaled_lam(lam, surrogate, 1 / tokens),
        other_way_round=lambda lam, tokens, surrogate: _scaled_lam(lam, surrogate, tokens**0.5),
        ratios_too=lambda lam, tokens, surrogate: lam * tokens**-0.5,
    ),
}
EXERCISES = load("ex01.yaml", ANSWERS)
