import numpy as np
import pytest

from prehab_lib.report.intervals import paired_interval


def test_by_hand():
    """Means of two draws out of {0, 4} are 0, 2 or 4 with chances 1/4, 1/2, 1/4; equal differences leave no doubt."""
    found = paired_interval([0.0, 4.0], level=0.9)
    assert found == (2.0, 0.0, 4.0) and found.sign == 0
    assert paired_interval([0.0, 4.0], level=0.2)[1:] == (2.0, 2.0)
    assert paired_interval([[1.5] * 3] * 4) == (1.5, 1.5, 1.5)
    assert paired_interval([1.5] * 4).sign == 1 and paired_interval([-1.0, -1.0]).sign == -1


def test_its_width_is_that_of_the_mean_over_seeds_and_items():
    """Of many: 2 × 1.96 standard errors. Seeds that agree on every item leave the doubt which items were scored."""
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = paired_interval(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert found == paired_interval(values) != paired_interval(values, seed=1)
    items = np.random.default_rng(1).normal(0, 1, 300)
    found = paired_interval(np.tile(items, (5, 1)))
    assert found.high - found.low == pytest.approx(2 * 1.96 * items.std() / 300**0.5, rel=0.1)
    seeds = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
    assert paired_interval(np.tile(seeds[:, None], (1, 300))) == pytest.approx(paired_interval(seeds), abs=0.2)


def test_coverage_of_five_seeds_is_what_the_docstring_says():
    generator = np.random.default_rng(2)
    intervals = [paired_interval(generator.normal(1, 1, 5), draws=300, seed=i) for i in range(400)]
    covered = np.mean([found.low <= 1 <= found.high for found in intervals])
    assert 0.78 < covered < 0.92


def test_bad_input_is_named():
    for differences, options, message in (
        ([1.0], {}, "at least two seeds"),
        ([[1.0, float("nan")]] * 2, {}, "finite"),
        ([1.0, 2.0], {"level": 1.0}, "level = 1.0"),
        ([1.0, 2.0], {"draws": 0}, "draws = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_interval(differences, **options)
