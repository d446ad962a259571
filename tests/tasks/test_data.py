import datasets
import pytest
from PIL import Image

from prehab_lib.tasks import data
from tests.tasks.helpers import refuses

pytestmark = pytest.mark.usefixtures("own_folders")


def images(count: int, side: int = 16, classes: int = 3) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    pictures = [Image.new("RGB", (side, side), (9 * i, 0, 0)) for i in range(count)]
    return datasets.Dataset.from_dict(
        {"img": pictures, "label": [i % classes for i in range(count)]}, features=features
    )


def image_folder(root, *places):
    for place in places:
        (root / place).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(root / place / "1.png")
    return str(root)


@pytest.fixture
def holder(tmp_path):
    """A folder that holds a CIFAR-10 in the hub's layout."""
    folder = tmp_path / "sets" / "cifar10"
    folder.mkdir(parents=True)
    images(12).to_parquet(folder / "train-00000-of-00002.parquet")
    images(6).to_parquet(folder / "train-00001-of-00002.parquet")
    images(5).to_parquet(folder / "test-00000-of-00001.parquet")
    return tmp_path / "sets"


def test_an_argument_a_variable_and_a_path_open_the_same_door(holder, monkeypatch):
    train, test = data.load("cifar10", "train", holder), data.load("cifar10", "test", holder)
    assert (len(train), len(test)) == (18, 5) and train.column_names == ["image", "label"]
    assert data.where("cifar10") is None and data.where(str(holder / "cifar10")) == holder / "cifar10"
    monkeypatch.setenv("PREHAB_DATA", str(holder))
    assert data.where("cifar10") == holder / "cifar10" and len(data.load("cifar10", "test")) == 5


def test_missing_folders_names_parts_and_columns_are_named(holder, tmp_path):
    missing = dict(error=FileNotFoundError)
    refuses("data_root = .*nowhere.* is no folder", data.load, "cifar10", "train", tmp_path / "nowhere", **missing)
    refuses("'cifar10' is not at .*put it there", data.load, "cifar10", "train", tmp_path, **missing)
    (tmp_path / "cifar10").mkdir()
    needed = r"has no part 'train': it needs train\*.parquet"
    refuses(needed, data.load, "cifar10", "train", tmp_path, **missing)
    (tmp_path / "cifar10" / "notes.txt").write_text("no images")
    refuses(needed, data.load, "cifar10", "train", tmp_path, **missing)
    refuses("dataset = 'cifar11' is neither a folder nor one of digits, cifar10", data.load, "cifar11", "train")
    refuses("part = 'dev' is not known: choose one of train, test", data.load, "cifar10", "dev", holder)
    other = tmp_path / "other"
    other.mkdir()
    images(3).rename_column("label", "kind").rename_column("img", "image").to_parquet(other / "train.parquet")
    refuses("has no column 'label': it has image, kind", data.load, str(other), "train")
    cola = data.DATASETS["glue/cola"]
    refuses("'glue/cola' holds sentence, label: what is wanted here is image, label", data.load, "glue/cola", "train")
    refuses("'cifar10' holds image, label", data.load, "cifar10", "train", holder, cola)
    fetched = r"'uoft-cs/cifar10' could not be fetched.*data_root .or PREHAB_DATA."
    refuses(fetched, data.load, "cifar10", "train", error=ConnectionError)


def test_image_folders_damaged_files_and_plain_labels(tmp_path):
    name = image_folder(tmp_path / "folders", "train/cat", "train/dog", "test/cat", "test/dog")
    loaded = data.load(name, "train")
    assert len(loaded) == 2 and loaded.features["label"].names == ["cat", "dog"]
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine" / "train.parquet"
    file.write_bytes(b"torn")
    refuses("the data in .*mine could not be read .*fresh copy", data.load, str(file.parent), "train")
    images(4).rename_column("img", "image").cast_column("label", datasets.Value("int64")).to_parquet(file)
    assert data.load(str(file.parent), "train").features["label"].num_classes == 3


def test_of_a_huge_set_one_file_is_fetched(monkeypatch):
    asked = []

    def fetch(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_dict({"text": ["a"], "url": ["b"]})

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    assert data.load("c4", "test", like=data.DATASETS["c4"]).column_names == ["text"]
    args, options = asked.pop()
    assert args[0] == "allenai/c4" and options["split"] == "heldout"
    assert options["data_files"] == {"heldout": "en/c4-validation.00000-of-00008.json.gz"}
    data.load("wikitext-2-v1", "validation", like=data.DATASETS["wikitext-2-v1"])
    assert asked.pop() == (("Salesforce/wikitext", "wikitext-2-v1"), {"split": "validation"})
