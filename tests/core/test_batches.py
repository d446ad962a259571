import pytest
import torch
import transformers

from prehab_lib.batches import endless, forward, move
from prehab_lib.statistics.tokens import padding_mask
from tests.helpers import Toy


def test_both_kinds_reach_the_model():
    model, x = Toy(), torch.randn(3, 5, 12)
    assert torch.equal(forward(model, {"x": x}), forward(model, (x, torch.zeros(3))))


def test_moving_keeps_the_kind():
    batch = {"x": torch.zeros(1), "note": "kept"}
    assert move(batch, "cpu")["note"] == "kept"
    assert isinstance(move([torch.zeros(1), torch.zeros(1)], "cpu"), tuple)
    with pytest.raises(ValueError, match="a batch is a dict"):
        move(torch.zeros(3), "cpu")


def test_endless_starts_over_and_says_when_it_cannot():
    stream = endless([1, 2])
    assert [next(stream) for _ in range(5)] == [1, 2, 1, 2, 1]
    once = endless(iter([1]))
    next(once)
    with pytest.raises(ValueError, match="batches ran out"):
        next(once)
    with pytest.raises(ValueError, match="batches ran out"):
        next(endless([]))


def test_what_a_tokenizer_returns_is_a_batch():
    batch = transformers.BatchEncoding({"x": torch.randn(3, 5, 12), "attention_mask": torch.ones(3, 5)})
    assert move(batch, "cpu")["x"].shape == (3, 5, 12) and padding_mask(batch).all()
    assert padding_mask((1, 2)) is None and padding_mask({"x": 1}) is None
    assert forward(Toy(), batch).shape == (3, 4)
