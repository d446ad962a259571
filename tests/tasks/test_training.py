import pytest
import torch

from prehab_lib import evaluate
from prehab_lib.save.models import small_vit
from prehab_lib.tasks import drawn, images, training
from prehab_lib.tasks.drawn import Drawn
from prehab_lib.tasks.training import base_model

pytestmark = pytest.mark.usefixtures("own_folders")


class Counter:
    """A training that counts its calls and leaves the count in the model."""

    calls = 0

    def __call__(self, model, task, seed):
        self.calls += 1
        with torch.no_grad():
            model.head.bias.fill_(self.calls)

    def model(self, seed=1, untrained=0, **key):
        return base_model(small_vit(1, 16, 2, seed=untrained), self, None, "cpu", seed, recipe={}, **key)


def test_trained_once_for_everybody_and_again_where_the_entry_is_damaged(tmp_path):
    train = Counter()
    (first, how), (again, how_again) = train.model(), train.model()
    assert (how, how_again, train.calls) == ("trained", "cached", 1)
    x = torch.rand(2, 1, 8, 16)
    assert torch.equal(first(x), again(x)) and not first.training and not again.training
    (file,) = (tmp_path / "cache").rglob("model.safetensors")
    file.write_bytes(b"torn")
    assert (train.model()[1], train.model()[1], train.calls) == ("trained", "cached", 2)


def test_whatever_decides_the_weights_is_in_the_key(monkeypatch):
    train = Counter()
    train.model()
    for change in ({"seed": 2}, {"untrained": 1}, {"data": torch.ones(2)}, {"data": torch.ones(2).half()}):
        model, how = train.model(**change)
        assert how == "trained" and float(model.head.bias.detach()[0]) == train.calls, change
        assert train.model(**change)[1] == "cached", change
    assert {images.__file__, drawn.__file__, evaluate.__file__} < {str(file) for file in training.DECIDING}
    with monkeypatch.context() as patch:
        patch.setattr(training, "DECIDING", training.DECIDING[1:])
        assert train.model()[1] == "trained"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert train.model()[1] == "trained"


def test_a_cache_that_cannot_be_written_costs_only_the_caching(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PREHAB_CACHE", str(tmp_path / "file"))
    model, how = Counter().model()
    assert how == "trained" and float(model.head.bias.detach()[0]) == 1 and "not cached" in capsys.readouterr().out
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_interrupted_training_does_not_keep_the_lock():
    def interrupted(model, task, seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        base_model(small_vit(1, 16, 2), interrupted, None, "cpu", 1, recipe={})
    assert Counter().model()[1] == "trained"


def test_draws_repeat_themselves_and_are_what_the_numbers_of_the_notebooks_rest_on():
    """Against torch's own functions: passes of permutations, or places one batch after another."""
    generator = torch.Generator().manual_seed(5)
    passes = torch.cat([torch.randperm(10, generator=generator) for _ in range(3)]).tolist()
    shuffled = Drawn(list, 10, 4, seed=5, count=6)
    assert len(shuffled) == 6 and list(shuffled) == list(shuffled) == [passes[i : i + 4] for i in range(0, 24, 4)]
    generator = torch.Generator().manual_seed(5)
    places = [torch.randint(1000, (40, 1), generator=generator).flatten().tolist() for _ in range(3)]
    assert list(Drawn(list, 1000, 40, seed=5, count=3, replacement=True)) == places
    assert list(Drawn(list, 10, 4, seed=5, count=0)) == []
    assert list(Drawn(list, 10, 4, seed=6, count=6)) != list(shuffled)
