import math

import pytest
import torch
from torch import nn

from prehab_lib.batches import mean_over_tokens
from prehab_lib.stats import collect
from prehab_lib.tasks.perplexity import language_loss, perplexity, token_losses
from prehab_lib.tasks.windows import Windows, cut
from tests.families import llama, tiny
from tests.tasks.helpers import refuses

ROWS = [[3, 5, 8, 2, 9, 11], [7, 7, 1]]  # of different lengths, for padding
LAYER = "model.layers.0.self_attn.q_proj"


def slow(model, rows):
    """-log p(token | what stands before it in its row), token by token."""
    nats = []
    for row in rows:
        for t in range(1, len(row)):
            with torch.no_grad():
                logits = model(torch.tensor([row[:t]])).logits[0, -1].double()
            nats.append(float(torch.logsumexp(logits, 0) - logits[row[t]]))
    return nats


def padded(rows, left=False):
    """The rows as one batch with a mask."""
    longest = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        fill, real = [0] * (longest - len(row)), [1] * len(row)
        ids.append(fill + row if left else row + fill)
        mask.append(fill + real if left else real + fill)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture
def windows():
    stream = torch.randint(40, (50,), generator=torch.Generator().manual_seed(3))
    return cut(stream, 9)


def test_perplexity_is_the_slow_loops(model, windows):
    nats = slow(model, windows.ids.tolist())
    wanted = math.exp(sum(nats) / len(nats))
    assert len(nats) == 5 * 8
    model.train()
    for batch in (1, 2, 8):
        assert perplexity(model, windows, batch) == pytest.approx(wanted, rel=1e-5)
    assert model.training and all(p.grad is None for p in model.parameters())
    model.eval()


def test_other_families_and_half_precision(windows):
    for family in ("mistral", "qwen2", "opt", "gpt2"):
        model = tiny(family)
        nats = slow(model, windows.ids.tolist())
        wanted = math.exp(sum(nats) / len(nats))
        assert perplexity(model, windows) == pytest.approx(wanted, rel=1e-5), family
        assert perplexity(model.to(torch.bfloat16), windows) == pytest.approx(wanted, rel=0.05), family
    model = tiny("llama")  # one that knows nothing is as perplexed as its vocabulary is large
    nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, windows) == pytest.approx(40.0, rel=1e-5)


def test_padding_and_masked_prompts_do_not_count(model):
    """As if each row were read alone; positions are counted from its first real token."""
    for family in ("llama", "gpt2", "opt"):
        network = tiny(family)
        for left in (False, True):
            total, count = token_losses(network, padded(ROWS, left))
            wanted = pytest.approx(sum(slow(network, ROWS)), rel=1e-5)
            assert count == 7 and float(total.detach()) == wanted, (family, left)
    labels = torch.tensor([[-100, -100, 8, 2, 9, 11], [-100, 7, 1, -100, -100, -100]])  # prompts of 2 and 1 tokens
    answers = slow(model, ROWS[:1])[1:] + slow(model, ROWS[1:])
    loss = language_loss(model, padded(ROWS) | {"labels": labels})
    assert float(loss.detach()) == pytest.approx(sum(answers) / 6, rel=1e-5) and len(answers) == 6


def test_the_loss_is_differentiable_and_as_precise_as_the_model(windows):
    ids = {"input_ids": windows.ids[:2]}
    assert language_loss(llama().double(), ids).dtype == torch.float64
    assert language_loss(llama().bfloat16(), ids).dtype == torch.float32
    model = llama()
    language_loss(model, ids).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_whole_rows_go_at_once_and_give_the_gradients_of_each_alone(model):
    calls = []

    @mean_over_tokens
    def counted(model, batch):
        calls.append(len(batch["input_ids"]))
        return language_loss(model, batch)

    def undeclared(model, batch):
        return language_loss(model, batch)

    needs, ids = {"fisher_in", "fisher_out", "grad"}, [[3, 5, 8, 2, 9, 11], [7, 7, 1, 4, 2, 2]]
    for more, at_once in (
        ({}, True),
        ({"attention_mask": [[1] * 6, [1] * 6]}, True),
        ({"attention_mask": [[1] * 6, [1, 1, 1, 1, 0, 0]]}, False),
        ({"labels": ids}, True),
        ({"labels": [[-100, -100, 8, 2, 9, 11], ids[1]]}, False),
    ):
        batch = {key: torch.tensor(value) for key, value in (more | {"input_ids": ids}).items()}
        one, other = (collect(model, [batch], [LAYER], needs, loss)[LAYER] for loss in (counted, undeclared))
        assert calls == ([2] if at_once else [1, 1]), more
        calls.clear()
        for need in needs:
            torch.testing.assert_close(getattr(one, need), getattr(other, need), rtol=1e-4, atol=1e-8)


class Table(nn.Module):
    """Logits by token, read off a table; token 40 never comes."""

    def __init__(self, of_the_last):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(41, 41).index_fill(1, torch.tensor(40), of_the_last))

    def forward(self, input_ids):
        return self.table[input_ids]


def test_logits_that_are_not_finite_are_an_error_and_a_huge_perplexity_is_infinite(windows):
    for value in (float("nan"), float("inf"), float("-inf")):
        refuses("logits are NaN or infinite", perplexity, Table(value), windows)
    assert perplexity(Table(1e6), windows) == math.inf  # sure of a token that never comes


def test_bad_input_is_named(model, windows):
    far, long = Windows(torch.full((1, 4), 40), 0, 1), Windows(torch.zeros(1, 17, dtype=torch.int64), 0, 1)
    said = "token 40 is outside the model's vocabulary of 40: the tokenizer belongs to another"
    refuses(said, perplexity, model, far)
    refuses("window = 17 is longer than the 16 positions of the model", perplexity, tiny("gpt2"), long)
    refuses("there is nothing to evaluate", perplexity, model, [])
    batch = {"input_ids": windows.ids, "labels": torch.full_like(windows.ids, -100)}
    refuses("no token of the batch is scored", language_loss, model, batch)
    refuses("there is nothing to evaluate: no token is scored", perplexity, model, [batch])


def test_gradients_are_those_of_each_sample_alone(model):
    """The Fisher of a padded batch is that of its rows one by one: no sample weighs more for being longer."""
    alone = [{"input_ids": torch.tensor([row])} for row in ROWS]
    one, other = (collect(model, some, [LAYER], {"fisher_in"}, language_loss) for some in ([padded(ROWS)], alone))
    torch.testing.assert_close(one[LAYER].fisher_in, other[LAYER].fisher_in, rtol=1e-4, atol=0)
