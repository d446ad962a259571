import torch

from prehab_lib.tasks.training import Best


def test_the_lowest_is_kept_and_comes_back():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    best = Best([weight])
    kept = []
    for value, number in ((3.0, 1.0), (2.0, 2.0), (2.0, 3.0), (5.0, 4.0)):
        weight.data.fill_(number)
        kept.append(best.offer(value))
    assert kept == [True, True, False, False] and best.since == 2 and best.value == 2.0
    best.restore()
    assert float(weight.detach()) == 2.0


def test_nothing_comes_back_where_nothing_was_kept():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    best = Best([weight])
    assert not best.offer(float("nan")) and not best.offer(float("inf"))
    weight.data.fill_(7.0)
    best.restore()
    assert float(weight.detach()) == 7.0
