import numpy as np
import pandas
import pytest

from prehab_lib.report import effects
from prehab_lib.report.effects import Curve, Effect, effect, status


def test_an_interval_by_hand():
    """Mean 2, standard error 1 of three: t at 97.5 % with two degrees of freedom is 4.303."""
    found = effect([2 - 3**0.5, 2.0, 2 + 3**0.5])
    assert found == pytest.approx((2.0, 2 - 4.3027, 2 + 4.3027, 3), abs=1e-4)
    assert found.half_width == pytest.approx(4.3027, abs=1e-4)
    assert effect([1.5] * 5) == (1.5, 1.5, 1.5, 5)


def test_a_known_effect_gets_its_status():
    """At least as often as said, with five seeds. Paper's size 6.6 where it is to be excluded, else unknown."""
    for true, spread, wanted, rate in (
        (0, 0.4, "equivalent", 0.85),
        (0, 3.0, "undecided", 0.90),
        (1, 0.3, "supported", 0.98),
        (-5, 1.5, "reversed", 0.98),
        (0, 2.0, "excluded at the paper's size", 0.85),
    ):
        size = 6.6 if wanted.startswith("excluded") else None
        draws = np.random.default_rng(7).normal(true, spread, (1000, 5))
        given = pandas.Series([status(effect(row), paper=size) for row in draws]).value_counts(normalize=True)
        assert given[wanted] >= rate, (true, spread, given.to_dict())
        if true == 0:  # each wrong direction at 2.5 %
            assert given.get("supported", 0) < 0.04 and given.get("reversed", 0) < 0.04, spread


def test_statuses_at_their_borders():
    assert status(Effect(0.5, 0.1, 0.9, 5)) == "supported"  # also where it is small
    assert status(Effect(0.0, -1.0, 1.0, 5)) == "equivalent"
    assert status(Effect(0.0, -1.1, 1.0, 5)) == "undecided"
    assert status(Effect(2.0, -1.0, 5.0, 5), paper=6.0) == "excluded at the paper's size"
    assert status(Effect(2.0, -1.0, 7.0, 5), paper=6.0) == "undecided"
    assert status(Effect(5.0, 4.0, 6.0, 5), treated=False) == "not treated"
    assert {status(Effect(0, *ends, 5)) for ends in ((1, 2), (-2, -1), (0, 0), (-9, 9))} < set(effects.STATUSES)


def test_the_curve_is_read_backwards():
    curve = Curve([0.4, 0.0, 0.2], [50.0, 90.0, 80.0])
    assert curve.removed_at(85) == pytest.approx(0.1) and curve.removed_at(80) == pytest.approx(0.2)
    assert (curve.removed_at(90), curve.removed_at(50)) == (0.0, 0.4)
    assert np.isnan([curve.removed_at(99), curve.removed_at(1), curve.ratio_points(99, 80)]).all()
    assert np.isnan(Curve([0, 0.2], [10.0, 10.0]).removed_at(9.9)), "a flat curve measures nothing"
    assert curve.ratio_points(85, 65) == pytest.approx(20) and curve.ratio_points(65, 85) == pytest.approx(-20)


def test_noise_on_a_curve_is_averaged_and_a_flat_piece_counts_as_its_middle():
    curve = Curve([0, 0.1, 0.2, 0.3], [90.0, 78.0, 82.0, 60.0])
    assert curve.removed_at(80) == pytest.approx(0.15)
    assert curve.removed_at(85) == pytest.approx(0.075)


def test_bad_input_is_named():
    for wrong in ([1.0], [[1.0, 2.0]], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="differences"):
            effect(wrong)
    for removed, merits in (([0.0], [1.0]), ([0.2, 0.4], [1.0, 2.0]), ([0.0, 0.2], [1.0, float("nan")])):
        with pytest.raises(ValueError, match="a curve needs"):
            Curve(removed, merits)


def test_an_effect_in_words():
    assert effects.described(Effect(0.26, -1.24, 1.76, 5), "ratio points") == "+0.3 [−1.2, 1.8] ratio points"
    assert effects.described(Effect(-0.0021, -0.004, -0.0001, 5), "nats") == "−0.0021 [−0.0040, −0.0001] nats"
    assert effects.described(Effect(12.34, 1.5, 23.2, 5), "points") == "+12.3 [1.50, 23.2] points"


def test_ratio_points_recover_a_shift_of_known_size():
    """An arm that scores like a cut of 5 points less gains 5 ratio points, on steep and flat places alike."""
    grid = np.arange(0, 0.91, 0.02)
    merits = 90 - 80 * grid**4
    curve = Curve(grid, merits)
    for removed in (0.2, 0.4, 0.6, 0.8):
        shifted = 90 - 80 * (removed - 0.05) ** 4
        assert curve.ratio_points(shifted, 90 - 80 * removed**4) == pytest.approx(5, abs=0.1)
