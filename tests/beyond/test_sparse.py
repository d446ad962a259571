"""Low-rank plus sparse: what it is at either end, an error that never grows, and bytes that are written."""

import json
from dataclasses import replace

import numpy
import pytest
import torch
from safetensors.torch import save

from prehab_lib.beyond.sparse import low_rank_sparse, packed, refitted, split, storage, support
from prehab_lib.budget import rank_for
from prehab_lib.weightings import decompose, error
from tests.helpers import layer
from tests.stack import refuses

W, STATS, X = layer(14, 10, 60, spread=1.0)
GRAM = STATS.gram


def test_without_entries_it_is_the_whitened_truncation():
    found = low_rank_sparse(W, STATS, 4, 0)
    torch.testing.assert_close(found.dense(), decompose(W, STATS).truncate(4).dense())
    assert not found.S.any() and found.errors[0] == found.errors[-1]


@pytest.mark.parametrize("per_row", [True, False])
def test_without_a_rank_and_a_refit_it_is_wanda(per_row):
    """Of every output row, or of all, the weights with the largest |W_ij| ‖X_j‖ stay as they are."""
    found = low_rank_sparse(W, STATS, 0, 14 * 3, rounds=1, refit=False, per_row=per_row).S
    score = W.abs() * X.norm(dim=0)
    least = score.sort(1).values[:, -3:-2] if per_row else score.flatten().sort().values[-14 * 3]
    assert torch.equal(found, torch.where(score >= least, W, 0))


def test_the_error_is_that_of_the_sum_and_never_grows():
    for options in ({"per_row": True}, {}, {"refit": False}):
        found = low_rank_sparse(W, STATS, 3, 28, **options)
        assert all(b <= a for a, b in zip(found.errors, found.errors[1:], strict=False))
        assert found.errors[0] == pytest.approx(decompose(W, STATS).tail_error(3), rel=1e-9)
        assert found.errors[-1] == pytest.approx(error(W, found.dense(), STATS), rel=1e-9)
        assert found.errors[-1] < 0.6 * found.errors[0] and (found.S != 0).sum() <= 28
        torch.testing.assert_close(found(X), X @ found.dense().T)


def test_a_refit_is_least_squares_on_its_support():
    mask = support(W, GRAM, 40)
    S = refitted(W, GRAM, mask)
    for row, chosen in enumerate(mask):
        exact = torch.linalg.lstsq(X[:, chosen], X @ W[row]).solution
        torch.testing.assert_close(S[row, chosen], exact, rtol=1e-4, atol=1e-5)
    assert not S[~mask].any() and mask.sum() == 40


def test_a_planted_sum_is_found():
    wide, stats, _ = layer(24, 20, 100, spread=0.5)
    planted = torch.zeros_like(wide)
    planted[[1, 5, 9], [2, 7, 4]] = torch.tensor([4.0, -3.6, 4.4]).double()
    found = low_rank_sparse(decompose(wide, stats).truncate(2).dense() + planted, stats, 2, 3, rounds=30)
    torch.testing.assert_close(found.S, planted, rtol=1e-5, atol=1e-5)
    assert found.errors[-1] < 1e-12 * found.errors[0]


@pytest.mark.parametrize(("rank", "kept"), [(3, 0), (3, 3), (0, 90), (2, 60)])
def test_the_bytes_are_those_of_a_file_which_holds_the_sum(rank, kept):
    wide = torch.cat([W, W.roll(1), W.roll(2), W.roll(3)], dim=1)[:, :39]
    stats = replace(STATS, gram=torch.eye(39).double())
    found = low_rank_sparse(wide, stats, rank, kept, refit=False)
    tensors = packed(found)
    written = save(tensors)
    header = 8 + int.from_bytes(written[:8], "little")
    sizes = [end - first for first, end in (one["data_offsets"] for one in json.loads(written[8:header]).values())]
    assert len(written) - header == sum(sizes) == storage(wide.shape, rank, kept)
    again = tensors["U"].double() @ tensors["V"].double() if rank else torch.zeros_like(wide)
    mask = torch.zeros(wide.shape, dtype=torch.bool)
    if "mask" in tensors:
        bits = numpy.unpackbits(tensors["mask"].numpy(), count=wide.numel())
        mask = torch.from_numpy(bits).bool().reshape(wide.shape)
    elif kept:
        mask[torch.arange(14).repeat_interleave(tensors["rows"].long().diff()), tensors["columns"].long()] = True
    again[mask] += tensors.get("values", torch.zeros(0)).double()
    assert ("mask" in tensors) == (kept > 30)
    torch.testing.assert_close(again, found.dense(), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("share", [0, 0.1, 0.35, 1])
def test_a_split_fits_into_the_bytes_of_the_rank_and_wastes_less_than_one_of_it(share):
    for shape in ((64, 64), (160, 64), (4096, 11008)):
        rank, kept = split(shape, 0.6, share)
        budget = 2 * rank_for(shape, 0.6) * sum(shape)
        assert 0 <= budget - storage(shape, rank, kept) < 2 * sum(shape)
        assert storage(shape, 0, kept) <= share * budget < storage(shape, 0, kept + 1)


def test_what_cannot_be_is_said():
    refuses(
        lambda rank=1, kept=1, of=STATS, share=0.5: low_rank_sparse(W, of, rank, kept) and split((9, 9), 0.5, share),
        ({"rank": 11}, "rank = 11: give a whole number, 10 at most"),
        ({"kept": 141}, "kept = 141: give a whole number, 140 at most"),
        ({"of": replace(STATS, gram=None)}, "gram"),
        ({"share": 1.5}, "share = 1.5"),
    )
