import pytest
import torch

from prehab_lib.save.models import small_vit
from prehab_lib.tasks.cache import trained
from prehab_lib.tasks.remember import cache_folder


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PREHAB_CACHE", str(tmp_path / "cache"))


class Counter:
    calls = 0

    def __call__(self, model):
        self.calls += 1
        with torch.no_grad():
            model.head.bias.fill_(self.calls)


def make():
    return small_vit(1, 16, 2)


def test_trained_once_for_everybody():
    train = Counter()
    first, cached_first = trained({"seed": 1}, make, train)
    again, cached_again = trained({"seed": 1}, make, train)
    assert (cached_first, cached_again, train.calls) == (False, True, 1)
    x = torch.rand(2, 1, 8, 16)
    assert torch.equal(first(x), again(x)) and not again.training


def test_another_key_is_another_model():
    train = Counter()
    trained({"seed": 1}, make, train)
    other, cached = trained({"seed": 2}, make, train)
    assert not cached and float(other.head.bias.detach()[0]) == 2


def test_another_number_of_threads_is_another_model(monkeypatch):
    train = Counter()
    for threads in (1, 2, 1):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        trained({"seed": 1}, make, train)
    assert train.calls == 2


def test_a_damaged_entry_is_trained_again():
    train = Counter()
    trained({"seed": 1}, make, train)
    (file,) = cache_folder().rglob("model.safetensors")
    file.write_bytes(b"torn")
    assert not trained({"seed": 1}, make, train)[1] and trained({"seed": 1}, make, train)[1]
    assert train.calls == 2


def test_a_cache_that_cannot_be_written_costs_only_the_caching(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PREHAB_CACHE", str(tmp_path / "file"))
    model, cached = trained({"seed": 1}, make, Counter())
    assert not cached and float(model.head.bias.detach()[0]) == 1
    assert "not cached" in capsys.readouterr().out


def test_an_interrupted_training_does_not_keep_the_lock():
    def interrupted(model):
        raise KeyboardInterrupt

    kept = []
    try:
        trained({"seed": 1}, make, interrupted)
    except KeyboardInterrupt as problem:
        kept.append(problem)  # as IPython keeps the last traceback
    assert trained({"seed": 1}, make, Counter())[1] is False and kept
