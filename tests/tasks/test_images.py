import numpy as np
import pytest
import timm
import torch
from PIL import Image

from prehab_lib.evaluate import classification_loss
from prehab_lib.save import models
from prehab_lib.tasks import small_vit
from prehab_lib.tasks.images import DIGITS, _digits, digit_pairs, digit_task, open_task
from tests.families import vit
from tests.stack import same
from tests.tasks.helpers import refuses
from tests.tasks.test_data import holder as holder
from tests.tasks.test_data import image_folder, images

pytestmark = pytest.mark.usefixtures("own_folders")
SMALL = {"depth": 1, "width": 8, "heads": 2}
RECIPE = dict(small=SMALL, steps=2, lr=1e-2)


def timm_model():
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)


def test_pairs_are_two_digits_side_by_side_drawn_as_ever():
    """The numbers of the notebooks rest on this order: all left digits of a batch, then all right ones."""
    generator, (singles, digits) = torch.Generator().manual_seed(4), _digits("train")
    for pictures, labels in digit_pairs("train", 8, 3, seed=4):
        left, right = torch.randint(len(singles), (2, 8), generator=generator)
        assert pictures.shape == (8, 1, 8, 16) and float(pictures.min()) >= 0 and float(pictures.max()) == 1
        assert torch.equal(pictures, torch.cat([singles[left], singles[right]], dim=3))
        assert torch.equal(labels, 10 * digits[left] + digits[right])


def test_no_digit_of_one_part_is_in_another():
    parts = [{image.numpy().tobytes() for image in _digits(part)[0]} for part in DIGITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    refuses("part = 'dev' is not known: choose one of train, validation, test", digit_pairs, "dev", 8, 1, seed=0)


def test_the_embedded_task():
    task = digit_task(8, 900)
    assert sum(len(labels) for _, labels in task.test()) == 1000 and "1000 fixed pairs" in task.protocol
    drawn = [next(iter(draw(0, 1)))[0] for draw in (task.train, task.calibration, task.validation)]
    assert drawn[1].shape == (8, 1, 8, 16)
    assert not any(torch.equal(drawn[i], drawn[i - 1]) for i in range(3))


def test_an_image_task_is_sized_for_its_model_and_draws_as_ever(holder):
    task = open_task("cifar10", timm_model(), batch=4, data_root=str(holder), test_images=3)
    first, again = list(task.train(0, 2)), list(task.train(0, 2))
    assert task.classes == 3 and first[0][0].shape == (4, 3, 32, 32) and len(task.train(0, 2)) == len(first) == 2
    assert all(a[0].equal(b[0]) and a[1].equal(b[1]) for a, b in zip(first, again, strict=True))
    assert not first[0][0].equal(next(iter(task.train(1, 1)))[0])
    assert sum(len(labels) for _, labels in task.test()) == 3 and "3 images of cifar10" in task.protocol
    kinds = images(18)["label"]
    labels = [*kinds[:12], *kinds[:6]]  # as the two files hold them
    rows = torch.randint(18, (12,), generator=torch.Generator().manual_seed(2007)).tolist()
    drawn = torch.cat([labels for _, labels in task.calibration(7, 3)]).tolist()
    assert drawn == [labels[row] for row in rows]


def test_a_few_test_images_are_of_more_than_one_class_and_parts_have_the_same_ones(holder, tmp_path):
    for file in (holder / "cifar10").iterdir():
        file.unlink()
    for part in ("train", "test"):
        images(30).sort("label").to_parquet(holder / "cifar10" / f"{part}.parquet")
    task = open_task("cifar10", timm_model(), 4, data_root=str(holder), test_images=9)
    assert len({int(label) for _, labels in task.test() for label in labels}) > 1
    refuses("test_images = 0", open_task, "cifar10", timm_model(), 4, data_root=str(holder), test_images=0)
    name = image_folder(tmp_path / "mine", "train/a", "train/b", "train/c", "test/a", "test/c")
    refuses("name different classes", open_task, name, timm_model(), 4)


def test_the_small_model_is_trained_once_for_one_setting():
    task = digit_task(4, 10)
    (first, how), (again, how_again) = (small_vit.base_model(task, "small", seed=0, **RECIPE) for _ in range(2))
    assert (how, how_again) == ("trained", "cached") and not again.training and same(first, again)
    sizes = [{"small": SMALL | {"width": 16}}, {"small": SMALL | {"heads": 1}}]
    for change in ({"seed": 1}, {"steps": 3}, {"lr": 1e-3}, *sizes):
        assert small_vit.base_model(task, "small", **({"seed": 0} | RECIPE | change))[1] == "trained", change
    assert small_vit.base_model(digit_task(5, 10), "small", seed=0, **RECIPE)[1] == "trained"  # other batches


def test_training_is_adamw_on_the_one_cycle():
    """Against the same steps written out."""
    task = digit_task(4, 10)
    model, by_hand = (models.small_vit(**SMALL, seed=3) for _ in range(2))
    small_vit.train(model, task, seed=0, steps=4, lr=1e-2)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-2, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=4)
    for examples in task.train(0, 4):
        optimizer.zero_grad()
        classification_loss(by_hand.train(), examples).backward()
        optimizer.step()
        schedule.step()
    assert same(model, by_hand) and all(p.grad is None for p in model.parameters())


def test_another_model_is_used_as_it_is_and_bad_settings_are_named():
    task = digit_task(4, 10)
    given, how = small_vit.base_model(task, "vit_tiny_patch16_224", seed=0, pretrained=False)
    assert how == "given" and not given.training and given.num_classes == 1000
    refuses("small has an unknown entry 'wdth'", small_vit.new_model, "small", small={"wdth": 8})
    untrained = models.small_vit(**SMALL)
    refuses("steps = 0: give a whole number, 1 or larger", small_vit.train, untrained, task, seed=0, steps=0, lr=1e-2)
    refuses("neither a folder nor a model timm knows", small_vit.base_model, task, "vit_nonesuch", seed=0)


def test_classes_keep_the_models_order_and_broken_images_are_named(tmp_path):
    places = [f"{part}/{kind}" for part in ("train", "test") for kind in ("ant", "bee")]
    name, model = image_folder(tmp_path / "mine", *places), timm_model()
    for said, labels in (("put them in the model's order", ["bee", "ant", "cow"]), ("", ["ant", "bee", "cow"])):
        model.pretrained_cfg = {**model.pretrained_cfg, "label_names": labels}
        if said:
            refuses(said, open_task, name, model, 4)
    task = open_task(name, model, 4)
    model.num_classes = 1
    refuses("has labels up to 1, the model 1 classes", open_task, name, model, 4)
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "mine" / "train" / "bee" / "1.png")
    assert open_task(name, timm_model(), 4).fed != task.fed  # a base model is trained again
    (tmp_path / "mine" / "test" / "bee" / "1.png").write_bytes(b"\x89PNG torn")
    refuses("image 1 could not be read .*replace it", lambda: [*open_task(name, timm_model(), 4).test()])


def test_sixteen_bits_keep_their_range_and_grey_models_and_bad_batches_are_refused(tmp_path):
    grey = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(grey).save(tmp_path / place / "0.png")
    images, _ = next(iter(open_task(str(tmp_path), vit(num_classes=2), 4).test()))
    assert images.std() > 0.4
    for model, batch, says in (
        (vit(num_classes=2, in_chans=1), 4, "read as colour"),
        (vit(num_classes=2), 0, "batch = 0"),
    ):
        with pytest.raises(ValueError, match=says):
            open_task(str(tmp_path), model, batch)
