import pytest
import torch

from prehab_lib.tasks.digits import PARTS, DigitPairs, _part


def test_pairs_are_two_digits_side_by_side():
    images, labels = next(iter(DigitPairs("train", 16, 1, seed=0)))
    assert images.shape == (16, 1, 8, 16) and float(images.min()) >= 0 and float(images.max()) == 1
    singles, digits = _part("train")
    for image, label in zip(images, labels, strict=True):
        left = int((singles == image[None, :, :, :8]).all((1, 2, 3)).nonzero()[0])
        right = int((singles == image[None, :, :, 8:]).all((1, 2, 3)).nonzero()[0])
        assert int(label) == 10 * int(digits[left]) + int(digits[right])


def test_no_image_of_one_part_is_in_another():
    parts = {part: {image.numpy().tobytes() for image in _part(part)[0]} for part in PARTS}
    assert sum(map(len, parts.values())) == 1797
    assert (
        not parts["train"] & parts["test"]
        and not parts["train"] & parts["validation"]
        and not parts["test"] & parts["validation"]
    )


def test_a_seed_is_a_sequence_that_can_be_read_twice():
    batches = DigitPairs("train", 8, 3, seed=4)
    first, second, other = list(batches), list(batches), list(DigitPairs("train", 8, 3, seed=5))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True)) and len(batches) == 3
    assert not torch.equal(first[0][0], other[0][0]) and not torch.equal(first[0][0], first[1][0])


def test_unknown_part_is_named():
    with pytest.raises(ValueError, match="part = 'dev' is not known: choose one of train, validation, test"):
        next(iter(DigitPairs("dev", 8, 1, seed=0)))
