import pytest
import torch

from prehab_lib.evaluate import classification_loss
from prehab_lib.save import models
from prehab_lib.tasks import images, small_vit

SMALL = {"depth": 1, "width": 8, "heads": 2}
RECIPE = dict(small=SMALL, steps=2, lr=1e-2)


def task(batch=4):
    return images.digit_task(batch, test_images=10)


@pytest.mark.usefixtures("own_folders")
def test_trained_once_for_one_setting():
    first, how = small_vit.base_model(task(), "small", seed=0, **RECIPE)
    again, how_again = small_vit.base_model(task(), "small", seed=0, **RECIPE)
    assert (how, how_again) == ("trained", "cached") and not again.training
    pictures, _ = next(iter(task().test()))
    assert torch.equal(first(pictures), again(pictures))
    for change in ({"seed": 1}, {"steps": 3}, {"lr": 1e-3}, {"small": SMALL | {"width": 16}}):
        assert small_vit.base_model(task(), "small", **({"seed": 0} | RECIPE | change))[1] == "trained"
    assert small_vit.base_model(task(5), "small", seed=0, **RECIPE)[1] == "trained"  # other batches


def test_training_is_adamw_on_the_one_cycle():
    """Against the same steps written out."""
    model, by_hand = (models.small_vit(**SMALL, seed=3) for _ in range(2))
    small_vit.train(model, task(), seed=0, steps=4, lr=1e-2)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=4)
    for examples in task().train(0, 4):
        optimizer.zero_grad()
        classification_loss(by_hand.train(), examples).backward()
        optimizer.step()
        schedule.step()
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other) and one.grad is None


def test_another_model_is_used_as_it_is(tmp_path):
    given, how = small_vit.base_model(task(), "vit_tiny_patch16_224", seed=0, pretrained=False)
    assert how == "given" and not given.training and given.num_classes == 1000


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="small has an unknown entry 'wdth'"):
        small_vit.new_model("small", small={"wdth": 8})
    with pytest.raises(ValueError, match="steps = 0: give a whole number, 1 or larger"):
        small_vit.train(models.small_vit(**SMALL), task(), seed=0, steps=0, lr=1e-2)
    with pytest.raises(ValueError, match="neither a folder nor a model timm knows"):
        small_vit.base_model(task(), "vit_nonesuch", seed=0)
