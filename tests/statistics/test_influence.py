import pytest
import torch
from torch import nn

from prehab_lib.save.models import small_vit
from prehab_lib.statistics.influence import block_of
from prehab_lib.stats import collect
from tests.helpers import Toy, toy_batches


class Turn(nn.Module):
    """A block that turns pairs of channels by an angle, through a linear layer."""

    def __init__(self, angle):
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        c, s = torch.cos(torch.tensor(angle)), torch.sin(torch.tensor(angle))
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[c, -s], [s, c]]))

    def forward(self, hidden_states):
        return (self.layer(hidden_states),)


class Stack(nn.Module):
    def __init__(self, *angles):
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Turn(a) for a in angles), nn.Linear(2, 3)

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = block(hidden_states=x)[0]
        return self.head(x)


def test_influence_is_one_minus_the_cosine_of_the_turn():
    x, mask = torch.randn(20, 4, 2), torch.ones(20, 4)
    mask[:, 3] = 0
    x[:, 3] = 0.0  # a padded token has no direction: it would count as a turn by a right angle
    stats = collect(Stack(0.5, 1.0), [{"x": x, "attention_mask": mask}], needs={"influence"})
    expected = [1 - torch.cos(torch.tensor(a)).item() for a in (0.5, 1.0)]
    assert [stats[f"blocks.{i}.layer"].influence for i in (0, 1)] == pytest.approx(expected, abs=1e-6)
    assert stats["head"].influence == 1.0


def test_a_block_that_changes_its_input_in_place_is_compared_with_what_came_in():
    class InPlace(Turn):
        def forward(self, h, scale=None):
            h += self.layer(h)
            return h

    model = Stack(0.5)
    model.blocks[0] = InPlace(0.5)
    model.blocks[0].forward = lambda hidden_states: (InPlace.forward(model.blocks[0], hidden_states),)
    found = collect(model, [{"x": torch.randn(40, 4, 2)}], needs={"influence"})["blocks.0.layer"].influence
    assert found == pytest.approx(1 - torch.cos(torch.tensor(0.25)).item(), abs=1e-6)  # h + R h turns by half the angle


def test_layers_of_one_block_share_it_on_a_real_transformer():
    model = small_vit(depth=2, width=16, heads=2)
    stats = collect(model, [{"x": torch.rand(8, 1, 8, 16)}], needs={"influence"})
    names = ("blocks.0.attn.qkv", "blocks.0.mlp.fc2", "blocks.1.mlp.fc2")
    first, same, other = (stats[name].influence for name in names)
    assert first == same != other
    assert all(0 <= s.influence <= 2 for s in stats.values())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_block_around_a_layer_and_a_model_without_blocks_has_equal_scores():
    assert {s.influence for s in collect(Toy(), toy_batches(), needs={"influence"}).values()} == {1.0}
    inside = {"blocks.3.attn.qkv": "blocks.3", "bert.encoder.layer.11.output.dense": "bert.encoder.layer.11"}
    inside |= {"layers.0.blocks.1.mlp.fc1": "layers.0.blocks.1", "0.weight": "0", "head": None, "fc1": None}
    for layer, block in inside.items():
        assert block_of(layer) == block, layer
