from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from prehab_lib.save.models import image_model
from prehab_lib.tasks import data
from prehab_lib.tasks.images import digit_task, image_task


def images(count: int, side: int = 16, classes: int = 3) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    rows = {
        "img": [Image.new("RGB", (side, side), (9 * i, 0, 0)) for i in range(count)],
        "label": [i % classes for i in range(count)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """A folder that holds a CIFAR-10 in the hub's layout."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.delenv("PREHAB_DATA", raising=False)
    folder = tmp_path / "sets" / "cifar10"
    folder.mkdir(parents=True)
    images(12).to_parquet(folder / "train-00000-of-00002.parquet")
    images(6).to_parquet(folder / "train-00001-of-00002.parquet")
    images(5).to_parquet(folder / "test-00000-of-00001.parquet")
    return tmp_path / "sets"


def test_parquet_in_a_data_root(holder):
    train, test = data.load("cifar10", "train", holder), data.load("cifar10", "test", holder)
    assert (len(train), len(test)) == (18, 5) and train.column_names == ["image", "label"]


def test_the_variable_and_a_path_open_the_same_door(holder, monkeypatch):
    assert data.where(str(holder / "cifar10")) == holder / "cifar10"
    monkeypatch.setenv("PREHAB_DATA", str(holder))
    assert data.where("cifar10") == holder / "cifar10"
    assert len(data.load("cifar10", "test")) == 5


def test_image_folders(tmp_path):
    for part, label in (("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")):
        folder = tmp_path / "mine" / part / label
        folder.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(folder / "1.png")
    loaded = data.load(str(tmp_path / "mine"), "train")
    assert len(loaded) == 2 and loaded.features["label"].names == ["cat", "dog"]


def test_missing_and_empty_folders_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("PREHAB_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="data_root = .*nowhere.* is no folder"):
        data.load("cifar10", "train", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="'cifar10' is not at .*put it there"):
        data.load("cifar10", "train", tmp_path)
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(FileNotFoundError, match="of the data set 'cifar10' is empty"):
        data.load("cifar10", "train", tmp_path)
    (tmp_path / "cifar10" / "notes.txt").write_text("no images")
    with pytest.raises(FileNotFoundError, match=r"has no part 'train': it needs train\*.parquet"):
        data.load("cifar10", "train", tmp_path)


def test_unknown_names_parts_and_columns_are_named(holder, tmp_path):
    with pytest.raises(ValueError, match="dataset = 'cifar11' is neither a folder nor one of cifar10"):
        data.load("cifar11", "train")
    with pytest.raises(ValueError, match="part = 'dev'"):
        data.load("cifar10", "dev", holder)
    other = tmp_path / "other"
    other.mkdir()
    images(3).rename_column("label", "kind").rename_column("img", "image").to_parquet(other / "train.parquet")
    with pytest.raises(ValueError, match="has no column 'label': it has image, kind"):
        data.load(str(other), "train")


def test_no_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.delenv("PREHAB_DATA", raising=False)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"'uoft-cs/cifar10' could not be fetched.*data_root .or PREHAB_DATA."):
        data.load("cifar10", "train")


def test_a_gated_data_set_is_one_sentence(monkeypatch):
    class GatedRepoError(Exception):
        pass

    def refuse(*args, **kwargs):
        raise GatedRepoError("403")

    monkeypatch.delenv("PREHAB_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(PermissionError, match=r"'ILSVRC/imagenet-1k' is gated.*hf auth login.*data_root"):
        data.load("imagenet-1k", "train")


def test_an_image_task_is_sized_for_its_model_and_repeats_itself(holder):
    model = image_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, img_size=32)
    task = image_task("cifar10", model, batch=4, data_root=str(holder), test_images=3)
    one, again = list(task.train(0, 2)), list(task.train(0, 2))
    assert task.classes == 3 and one[0][0].shape == (4, 3, 32, 32)
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(one, again, strict=True))
    assert not (one[0][0] == next(iter(task.train(1, 1)))[0]).all()
    assert sum(len(labels) for _, labels in task.test()) == 3 and "3 images of cifar10" in task.protocol


def test_the_embedded_task_is_balanced_in_size():
    task = digit_task(8, 900)
    assert sum(len(labels) for _, labels in task.test()) == 1000 and "1000 fixed pairs" in task.protocol
    assert next(iter(task.calibration(0, 1)))[0].shape == (8, 1, 8, 16)
    assert not torch.equal(next(iter(task.validation(0, 1)))[0], next(iter(task.calibration(0, 1)))[0])


def image_folder(root, tree):
    for place in tree:
        (root / place).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(root / place / "1.png")
    return str(root)


def test_parts_with_other_classes_are_refused(tmp_path):
    model = image_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, img_size=32)
    name = image_folder(tmp_path / "mine", ["train/a", "train/b", "train/c", "test/a", "test/c"])
    with pytest.raises(ValueError, match="name different classes"):
        image_task(name, model, 4)


def test_a_few_test_images_are_of_more_than_one_class(tmp_path, holder):
    model = image_model("vit_tiny_patch16_224", pretrained=False, num_classes=3, img_size=32)
    for part in ("train", "test"):
        sorted_by_class = images(30).sort("label")
        sorted_by_class.to_parquet(holder / "cifar10" / f"{part}.parquet")
    for file in (holder / "cifar10").glob("*-of-*"):
        file.unlink()
    task = image_task("cifar10", model, 4, data_root=str(holder), test_images=9)
    assert len({int(label) for _, labels in task.test() for label in labels}) > 1
    with pytest.raises(ValueError, match="test_images = 0"):
        image_task("cifar10", model, 4, data_root=str(holder), test_images=0)


def test_damaged_files_and_plain_labels(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match="the data in .*mine could not be read .*fresh copy"):
        data.load(str(folder), "train")
    plain = images(4).rename_column("img", "image").cast_column("label", datasets.Value("int64"))
    plain.to_parquet(folder / "train.parquet")
    assert data.load(str(folder), "train").features["label"].num_classes == 3


def test_of_a_huge_set_one_file_is_fetched(monkeypatch):
    asked = []

    def fetch(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_dict({"text": ["a"], "url": ["b"]})

    monkeypatch.delenv("PREHAB_DATA", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", fetch)
    assert data.load("c4", "test", like=data.DATASETS["c4"]).column_names == ["text"]
    (args, options) = asked.pop()
    assert args[0] == "allenai/c4" and options["split"] == "heldout"
    assert options["data_files"] == {"heldout": "en/c4-validation.00000-of-00008.json.gz"}
    data.load("wikitext-2-v1", "validation", like=data.DATASETS["wikitext-2-v1"])
    (args, options) = asked.pop()
    assert args == ("Salesforce/wikitext", "wikitext-2-v1") and options == {"split": "validation"}


def test_every_data_set_that_a_notebook_needs_is_known():
    named = {name for profiles in data.NEEDS.values() for names in profiles.values() for name in names}
    assert named <= set(data.DATASETS) and {"wikitext-2-raw-v1", "c4", "alpaca"} <= named


def test_every_notebook_says_what_data_it_needs():
    notebooks = Path(__file__).resolve().parents[2] / "notebooks"
    assert set(data.NEEDS) == {path.stem for path in notebooks.glob("[0-9][0-9]_*.ipynb")}
