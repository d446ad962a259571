"""Exercises of notebook 01, surrogates of the rank."""

import math

import torch

from prehab_lib.exercises import Exercise, slips


def _tensor(values):
    return torch.tensor(values, dtype=torch.float64)


# 1.1: Eq. (5) from the singular values


def _ratio(sigma):
    return sigma.sum() ** 2 / (sigma**2).sum()


# 1.2: the force of the stable rank


def _force(sigma):
    force = 2 * sigma / sigma[0] ** 2
    force[0] -= 2 * (sigma**2).sum() / sigma[0] ** 3
    return force


def _force_without_top(sigma):
    return 2 * sigma / sigma[0] ** 2


def _force_zero_at_top(sigma):
    force = 2 * sigma / sigma[0] ** 2
    force[0] = 0
    return force


# 1.3: the gradient of Eq. (5) with respect to W, where M = W L


def _pieces(W, L):
    M = W @ L
    U, sigma, Vt = torch.linalg.svd(M, full_matrices=False)
    return M, U @ Vt, sigma, _ratio(sigma)


def _gradient(W, L):
    M, polar, sigma, S = _pieces(W, L)
    return 2 / (sigma**2).sum() * (sigma.sum() * polar - S * M) @ L.T


def _gradient_by_m(W, L):
    M, polar, sigma, S = _pieces(W, L)
    return 2 / (sigma**2).sum() * (sigma.sum() * polar - S * M)


def _gradient_without_transpose(W, L):
    return _gradient_by_m(W, L) @ L


def _gradient_without_denominator(W, L):
    M, polar, sigma, S = _pieces(W, L)
    return 2 * (sigma.sum() / (sigma**2).sum() * polar - S * M) @ L.T


def _gradient_as_printed(W, L):
    M, _, sigma, S = _pieces(W, L)
    return (
        2
        * M
        @ (torch.diag(sigma) / (sigma**2).sum() - S * torch.eye(len(sigma), dtype=M.dtype))
        @ L.T
    )


# 1.4: λ when the Gram is a sum over tokens and no longer their mean


def _lam(lam, tokens, surrogate):
    return lam / math.sqrt(tokens) if surrogate == "nuclear" else lam


EXERCISES = {
    "1.1": Exercise(
        cases=[(_tensor([2, 1]),), (_tensor([4, 3, 0]),), (_tensor([3, 3, 3]),)],
        withheld=[(_tensor([5, 2, 1]),), (_tensor([7]),)],
        solution=_ratio,
        slips=slips(
            lambda s: (s**2).sum() / s[0] ** 2,
            "that is the stable rank, ‖M‖_F² / σ₁²: Eq. (5) has Σσ on top",
            lambda s: s.sum() / (s**2).sum(),
            "square the sum on top: without it the value changes with the scale of M",
            lambda s: (s**2).sum() ** 2 / (s**4).sum(),
            "that is the same ratio of the σ²: Eq. (5) takes the σ themselves",
            lambda s: s.sum() / (s**2).sum().sqrt(),
            "that is ‖M‖_* / ‖M‖_F: its square is Eq. (5)",
            lambda s: s.sum() / s[0],
            "that is ‖M‖_* / σ₁, one link down in the chain",
        ),
    ),
    "1.2": Exercise(
        cases=[(_tensor([2, 1]),), (_tensor([10, 5, 2, 1, 0.5, 0.1]),)],
        withheld=[(_tensor([3, 2, 1]),), (_tensor([1, 0.9]),)],
        solution=_force,
        slips=slips(
            _force_without_top,
            "σ₁ stands below the line too: differentiate it there as well",
            _force_zero_at_top,
            "the top force is not zero: raising σ₁ lowers all the other terms",
            lambda s: -_force(s),
            "every sign is turned: the force is positive where σ is pushed down",
            lambda s: _force(s) / 2,
            "a factor 2 is missing: d(σ²) = 2σ dσ",
        ),
    ),
    "1.3": Exercise(
        cases=[
            (_tensor([[2, 0], [0, 1]]), _tensor([[1, 0], [0, 1]])),
            (_tensor([[2, 1], [0, 1], [1, -1]]), _tensor([[2, 0], [1, 1]])),
        ],
        withheld=[(_tensor([[1, 2], [0, 3]]), _tensor([[1, 0], [2, 1]]))],
        solution=_gradient,
        slips=slips(
            _gradient_by_m,
            "that is the gradient for M: the chain rule through M = W L adds Lᵀ on the right",
            _gradient_without_transpose,
            "the chain rule adds Lᵀ, not L",
            _gradient_without_denominator,
            "the second term needs 1 / ‖M‖_F² as well: the first error of Eq. (6)",
            _gradient_as_printed,
            "that is Eq. (6) as printed, and not the gradient: see section 4",
            lambda W, L: -_gradient(W, L),
            "the sign is turned: this is the direction of descent",
        ),
    ),
    "1.4": Exercise(
        cases=[
            (0.1, 100, "nuclear"),
            (0.1, 100, "nuclear_ratio"),
            (5.0, 400, "nuclear"),
            (5.0, 400, "stable_rank"),
        ],
        withheld=[(0.3, 900, "nuclear"), (2.0, 50, "stable_rank"), (2.0, 50, "nuclear_ratio")],
        solution=_lam,
        slips=slips(
            lambda lam, tokens, surrogate: lam,
            "the nuclear norm doubles when M doubles: there λ has to change",
            lambda lam, tokens, surrogate: lam / tokens if surrogate == "nuclear" else lam,
            "the Gram grows by the token count, its root L only by the square root of it",
            (
                lambda lam, tokens, surrogate: (
                    lam * math.sqrt(tokens) if surrogate == "nuclear" else lam
                )
            ),
            "other way round: the norm grew, so λ has to shrink",
            lambda lam, tokens, surrogate: lam / math.sqrt(tokens),
            "the two ratios do not notice the scale of M: their λ stays",
        ),
    ),
}
