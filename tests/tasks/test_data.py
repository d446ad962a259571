import json
import sys
from pathlib import Path

import datasets
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from prehab_lib import rehab
from prehab_lib.__main__ import main
from prehab_lib.save import models
from prehab_lib.tasks import data
from prehab_lib.tasks.files import read_texts
from prehab_lib.tasks.images import _digits
from prehab_lib.tasks.tokenizers import tokenizer_of, train_bpe, train_wordpiece
from prehab_lib.tasks.windows import token_stream
from tests.tasks.helpers import refuses

pytestmark = pytest.mark.usefixtures("own_folders")


def images(count: int, side: int = 16, classes: int = 3) -> datasets.Dataset:
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=classes)})
    pictures = [Image.new("RGB", (side, side), (9 * i, 0, 0)) for i in range(count)]
    labels = [i % classes for i in range(count)]
    return datasets.Dataset.from_dict({"img": pictures, "label": labels}, features=features)


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


def written(folder, labels, name="train", typed=None):
    """A folder of images with these labels, in one Parquet file; its path."""
    features = datasets.Features({"image": datasets.Image(), "label": typed or pyarrow_type(labels)})
    folder.mkdir(exist_ok=True)
    pictures = [Image.new("RGB", (8, 8))] * len(labels)
    rows = datasets.Dataset.from_dict({"image": pictures, "label": labels}, features=features)
    rows.to_parquet(folder / f"{name}.parquet")
    return str(folder)


def pyarrow_type(labels):
    kinds = {int: "int64", float: "float64", str: "string", bool: "bool"}
    return datasets.Value(kinds[next(type(label) for label in labels if label is not None)])


def test_labels_keep_their_numbers_or_are_refused(tmp_path):
    numbers = [*range(12), 2, 10]
    for given, kept in (
        (numbers, numbers),
        ([str(i) for i in numbers], numbers),
        ([float(i) for i in numbers], numbers),
        ([1, 3, 3, 7], [1, 3, 3, 7]),  # gaps
        (["9", "10", "2"] * 4, [9, 10, 2] * 4),
        ([False, True, True], [0, 1, 1]),
        (["dog", "cat", "dog"], [1, 0, 1]),
        (["07", "7", "8"], [0, 1, 2]),  # words
    ):
        loaded = data.load(written(tmp_path / "set", given), "train")
        assert loaded["label"] == kept and loaded.features["label"].num_classes >= max(kept) + 1, given
    stored = datasets.ClassLabel(names=["10", "2"])  # what the file itself names stays
    assert data.load(written(tmp_path / "set", [1, 0, 1], typed=stored), "train")["label"] == [1, 0, 1]
    for given, said in (
        ([0, None, 1], "1 rows have no label"),
        ([0.0, float("nan"), 1.0], "could not be read"),
        ([0.5, 1.0], "could not be read"),
        ([-1, 0, 1], "labels go from -1 to 1"),
        ([0, 1, 10**12], "labels go from 0 to 1000000000000, of 50001"),
        (["a", None], "1 rows have no label"),
    ):
        refuses(said, data.load, written(tmp_path / "set", given), "train")
    name = image_folder(tmp_path / "folders", *(f"train/{i}" for i in range(11)))
    loaded = data.load(name, "train")
    assert loaded["label"] == [int(Path(row["image"].filename).parent.name) for row in loaded]


def test_a_text_too_long_is_refused_and_a_tilde_is_home(tmp_path, monkeypatch):
    with monkeypatch.context() as limit:
        limit.setattr("prehab_lib.tasks.files.LIMIT", 2**20)
        parquet.write_table(pyarrow.table({"text": [f"{i}" * 40_000 for i in range(100)]}), tmp_path / "long.parquet")
        (tmp_path / "long.txt").write_text("a" * (2**20 + 1))
        for name in ("long.parquet", "long.txt"):
            refuses("it holds more than 1 MiB", read_texts, tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREHAB_DATA", "~")
    (tmp_path / "cifar10").mkdir()
    assert data.where("cifar10") == tmp_path / "cifar10" and data.where("~/cifar10") == tmp_path / "cifar10"
    (tmp_path / "loop").symlink_to("loop")
    for name in (str(tmp_path / "loop"), "x" * 5000, "/" + "x" * 300, "a\0b"):
        refuses("is neither a folder nor one of", data.load, name, "train")
        refuses("is no folder: check the path", data.load, "cifar10", "train", name, error=FileNotFoundError)


def test_only_texts_are_read_as_texts(tmp_path):
    good = {"a.txt": "one [two]\n", "b.md": "# three", "c": "[[four]] five", "bom.txt": "\ufeffsix"}
    for name, text in good.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_texts(tmp_path / name) == [text.lstrip("\ufeff")], name
    bad = ["a.jsonl.gz", "a.json", "A.JSON", "a.csv", "a.tsv", "a.txt.gz", "a.xml", "a.yaml", "a.pkl"]
    for name in bad:
        (tmp_path / name).write_text('{"text": "one"}\n')
        refuses("would be read with all the marks of a", read_texts, tmp_path / name)
    for text in ('{"text": "one"}\n{"text": "two"}\n', ' [{"text": "one"}]', "a\0b"):
        (tmp_path / "d.txt").write_text(text)
        refuses("it holds JSON or zero bytes", read_texts, tmp_path / "d.txt")
    file = tmp_path / "e.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", None, ""], "id": [1, 2, 3]}), file)
    assert read_texts(file) == ["a", ""]
    parquet.write_table(pyarrow.table({"id": [1]}), file)
    refuses("could not be read .*a Parquet file with a column 'text'", read_texts, file)
    for column in ([1, 2], [["a"], ["b"]]):
        parquet.write_table(pyarrow.table({"text": column}), file)
        refuses("texts are a list of strings, not", read_texts, file)
    for torn in (b"", b"PAR1", b"PAR1" + b"\0" * 50 + b"PAR1"):
        file.write_bytes(torn)
        refuses("e.parquet could not be read", read_texts, file)
    for call in (token_stream, train_bpe, train_wordpiece):
        extra = [None] if call is token_stream else []
        for wrong in ("one string", ["a", 5], b"bytes"):
            refuses("texts are a list of strings, not", call, wrong, *extra)


def test_json_lines_are_texts_or_chats_and_a_bad_line_is_named(tmp_path):
    chat = [{"role": role, "content": f"{role} é\u2028"} for role in ("user", "assistant")]
    pair = {"prompt": "user é\u2028", "completion": "assistant é\u2028"}
    content = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ({"text": "a\nb"}, {"messages": chat}, pair))
    (tmp_path / "b.NDJSON").write_text(content + "\n\n", encoding="utf-8-sig", newline="")
    assert read_texts(tmp_path / "b.NDJSON") == ["a\nb", chat, chat]
    bad = ["", "{", "[1]", "1", '"text"', '{"text": null}', '{"text": "\\ud800"}', '{"messages": "a"}', "[" * 10**5]
    bad += ['{"messages": [[]]}', '{"messages": [{"role": "user", "content": ["parts"]}]}', '{"completion": "a"}']
    bad = dict.fromkeys(bad, "is no JSON object of texts or chats") | {'{"prompt": "a"}': "has no 'text'"}
    for line, said in (bad | {'{"messages": [{"role": "a"}]}': "has no 'content'"}).items():
        (tmp_path / "a.jsonl").write_text(f'{{"text": "a"}}\n{line}\n{{"text": "b"}}')
        refuses(rf"^the file .*a.jsonl could not be read \(line 2 {said}\): give", read_texts, tmp_path / "a.jsonl")


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch, capsys):
    for module, package, call in (
        ("timm", "timm", lambda: models.image_model("vit_tiny_patch16_224")),
        ("transformers", "transformers", lambda: models.text_model("a/b", "AutoModel")),
        ("transformers", "transformers", lambda: tokenizer_of("a/b")),
        ("datasets", "datasets", lambda: data.load("cifar10", "train")),
        ("peft", "peft", lambda: rehab._adapters(None, [], 1, None).__enter__()),
        ("sklearn.datasets", "scikit-learn", lambda: _digits.__wrapped__("train")),
    ):
        with monkeypatch.context() as gone:
            gone.setitem(sys.modules, module, None)
            refuses(f"'{module.split('.')[0]}' is not installed: run `pip install {package}`", call)
    monkeypatch.delitem(sys.modules, "prehab_lib.cli.compress", raising=False)
    monkeypatch.delattr("prehab_lib.cli.compress", raising=False)
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    assert main(["compress", "a", "--data", "b", "--out", "c"]) == 2
    assert "pip install transformers" in capsys.readouterr().err
