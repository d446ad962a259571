import math

import pytest
import torch
from torch import nn

from prehab_lib.evaluate import accuracy, classification_loss
from tests.helpers import Toy, toy_batches


class Fixed(nn.Module):
    """Returns the images as logits."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return images


def test_accuracy_by_hand_weighs_images_not_batches():
    logits = torch.eye(3)
    batches = [(logits, torch.tensor([0, 1, 2])), (logits[:1], torch.tensor([2]))]
    assert accuracy(Fixed(), batches) == 75.0


def test_loss_by_hand():
    assert float(classification_loss(Fixed(), (torch.zeros(2, 4), torch.tensor([0, 3])))) == pytest.approx(math.log(4))


def test_a_dict_keeps_its_labels_for_the_score():
    x, labels = toy_batches(1)[0]
    model = Toy().train()
    assert accuracy(model, [{"x": x, "labels": labels}]) == accuracy(model, [(x, labels)])
    assert model.training


def test_nothing_is_skipped_silently():
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        accuracy(Fixed(), [(torch.tensor([[float("nan"), 0.0]]), torch.tensor([1]))])
    with pytest.raises(ValueError, match="nothing to evaluate"):
        accuracy(Fixed(), [])
