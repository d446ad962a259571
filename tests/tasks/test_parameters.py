"""A notebook's parameters are read from its own cell, and bad ones are refused in one sentence."""

import importlib
import json
import subprocess
import sys
from typing import Any

import pytest

from prehab_lib.methods import METHODS
from prehab_lib.tasks import parameters

CELL = """\
removed: list = [0.2, 0.4]  # fraction taken away
lam: float = 0.1            # rank weight, Eq. (2)
steps: int = 20             # prehab steps (paper: 500)
seeds: list[int] = [0]      # one run per seed
methods: list = ["svd"]     # rulers
data_root: str = ""         # folder holding data sets
limit: int | None = None    # images, None for all
flip: bool = False          # mirror them
"""


@pytest.fixture
def notebook(tmp_path, write_notebook):
    return write_notebook(tmp_path / "notebooks" / "03_vit.ipynb", "print(steps)", parameters=CELL)


def test_names_types_and_defaults_are_read_and_replaced(notebook):
    read = parameters.read(notebook)
    assert list(read) == ["removed", "lam", "steps", "seeds", "methods", "data_root", "limit", "flip"]
    assert (read["steps"], read["limit"], read["seeds"]) == ((int, 20), (int | None, None), (list[int], [0]))
    assert parameters.parse('names: list = ["#a",\n  "b"]  # two\n', "x") == {"names": (list, ["#a", "b"])}
    resolved = parameters.resolve(notebook, {"steps": 3, "lam": 1, "limit": 10})
    assert (resolved["steps"], resolved["lam"], resolved["limit"], resolved["seeds"]) == (3, 1.0, 10, [0])
    assert isinstance(resolved["lam"], float)


def test_bad_values_are_one_sentence(notebook):
    for override, words in [
        ({"stpes": 3}, ['no parameter "stpes"', 'did you mean "steps"']),
        ({"zzz": 3}, ['no parameter "zzz"', "removed, lam"]),
        ({"removed": [0.2, 0]}, ["removed = 0", "greater than 0"]),
        ({"removed": [1.0]}, ["removed = 1.0", "less than 1"]),
        *[({"removed": bad}, ["removed", "number"]) for bad in ("40", [0.2, "40"], True)],
        ({"removed": []}, ["removed", "at least 1 item"]),
        ({"removed": 0.4}, ["removed", "list"]),
        *[({"lam": bad}, ["lam", "number"]) for bad in (float("nan"), float("inf"), "0.1", True)],
        ({"lam": -0.1}, ["lam = -0.1", "greater than or equal to 0"]),
        *[({"steps": bad}, ["steps"]) for bad in (-1, 2.0, True, "3")],
        *[({"seeds": bad}, ["seeds"]) for bad in ([], [0.5], [True], 0)],
        ({"methods": ["svd", "svd_lm"]}, ["svd_lm", "svd_llm"]),
        ({"data_root": 3}, ["data_root", "string"]),
        ({"flip": 1}, ["flip", "boolean"]),
        ({"limit": "all"}, ["limit", "integer"]),
    ]:
        with pytest.raises(ValueError) as caught:
            parameters.resolve(notebook, override)
        sentence = str(caught.value)
        assert "\n" not in sentence and all(word in sentence for word in ["03_vit", *words]), sentence


LORA = {"rank": 1, "steps": 0, "lr": 1e-3}
SHAPE = dict.fromkeys(("width", "mlp", "heads", "tokens", "batch", "blocks"), 1)


def checked(name: str, value) -> None:
    """Check a parameter that its notebook gives no type, so by RULES alone."""
    parameters.validated("03_vit", {name: (Any, ...)}, {name: value})


def test_rules_go_by_name(monkeypatch):
    with pytest.raises(ValueError, match="mine"):
        checked("method", "mine")
    monkeypatch.setitem(METHODS, "mine", METHODS["svd"])
    checked("method", "mine")  # known as soon as it is added
    for name, good, bad in [
        ("surrogate", "stable_rank", "rank"),
        ("surrogates", ["nuclear"], ["nuclear", 3]),
        ("method", "svd_llm", "SVD"),
        ("coordinates", "whitened", "white"),
        ("order", "UV", "uv"),
        ("lams", [0, 0.1], [-1]),
        ("rehab_steps", 0, -1),
        ("removed", 0.4, 1.0),
        ("seeds", [0, 1], [0, 1, 0]),
        ("others", {"nuclear": 0.1}, {"nuc": 0.1}),
        ("others", {}, {"nuclear": -0.1}),
        ("others", {}, ["nuclear"]),
        *[(name, 1, 0) for name in ("batch", "calibration", "kronecker")],
        ("window", 2, 1),
        ("lr", 1e-5, -1.0),
        ("reduction", "sum", "max"),
        ("schedule", "geometric", "linear"),
        ("task", "mnli", "wnli"),
        ("task", "paraphrase", 3),
        ("lora", LORA, {"rank": 1, "steps": 0}),
        ("lora", LORA | {"decay": True}, LORA | {"decay": 1}),
        ("lora", LORA | {"alpha": 2}, LORA | {"beta": 2}),
        ("gates", {"steps": 15}, {"stepz": 15}),
        ("large", {"compute": None}, {"compute": "half"}),
        ("block", {"hidden": 256, "mlp": 688}, {"hiden": 256, "mlp": 688}),
        *[(name, SHAPE, {"width": 4}) for name in ("vit", "bert")],
        *[("lora", LORA, LORA | bad) for bad in ({"rank": 0}, {"steps": -1}, {"lr": 0.0})],
    ]:
        checked(name, good)
        checked("something_else", bad)
        with pytest.raises(ValueError, match=name):
            checked(name, bad)


def test_tables_are_read_without_importing_torch(notebook):
    """What is read from the source, in a process of its own, is what the imported tables hold."""
    tables = [("methods", "METHODS"), ("surrogates", "SURROGATES")]
    tables += [("tasks.prose_tasks", "PROSE"), ("tasks.glue", "GLUE")]
    code = f"""import sys; from pathlib import Path; from prehab_lib.tasks import parameters, rules
parameters.resolve(Path({str(notebook)!r}), {{'methods': ['svd_llm']}})
print([rules.table_keys(*table) for table in {tables}], 'torch' in sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = [(importlib.import_module(f"prehab_lib.{module}"), table) for module, table in tables]
    assert done.stdout.strip() == f"{[tuple(getattr(module, table)) for module, table in modules]} False"


def test_a_cell_that_is_more_than_literals_is_refused():
    for cell, words in [
        *[(line, "name: type = literal") for line in ("steps = 3", "x: int", "import os")],
        ("steps: int = 3\nhalf: float = steps / 2", "not `half: float = steps / 2`"),
        ("x: torch.Tensor = 3", "a type among .* not `x: torch.Tensor = 3`"),
        ("x: int[str] = 3", "a type among"),
        ("steps: int =", "not Python"),
    ]:
        with pytest.raises(ValueError, match=words):
            parameters.parse(cell, "03_vit.ipynb")


def test_check_finds_the_notebook_from_where_people_stand(notebook, tmp_path, monkeypatch, write_notebook):
    monkeypatch.delenv("PREHAB_NOTEBOOK_DIR", raising=False)
    solutions = tmp_path / "notebooks" / "solutions"
    write_notebook(solutions / "03_vit.ipynb", "x = 1")  # has no parameters of its own
    namespace = parameters.resolve(notebook, {}) | {"other": 1, "steps": 7}
    for folder in (tmp_path, notebook.parent, solutions):
        monkeypatch.chdir(folder)
        P = parameters.check("03_vit", namespace)
        assert P.steps == 7, folder
    with pytest.raises(ValueError, match="frozen"):
        P.steps = 8
    with pytest.raises(ValueError, match=r"03_vit: lam = -1"):
        parameters.check("03_vit", namespace | {"lam": -1})
    del namespace["lam"]
    with pytest.raises(ValueError, match=r"lam is not set"):
        parameters.check("03_vit", namespace)
    empty = tmp_path / "elsewhere" / "deep"
    empty.mkdir(parents=True)
    monkeypatch.chdir(empty)
    monkeypatch.setenv("PREHAB_NOTEBOOK_DIR", str(notebook.parent))
    assert parameters.find("03_vit") == notebook
    with pytest.raises(FileNotFoundError, match="98_none"):
        parameters.find("98_none")


def test_two_parameters_cells_and_other_files_are_refused(notebook):
    content = json.loads(notebook.read_text())
    content["cells"] *= 2
    broken = ["hello", "", "[1", "[]", '{"cells": [{"cell_type": "code", "source": 5}]}', "\xff", '{"cells": [{}]}']
    whole = {"nbformat": 4, "metadata": {}, "cells": [{"cell_type": "code", "metadata": {}, "source": "1"}]}
    for text, words in {
        json.dumps(content): "2 cells are tagged",
        **dict.fromkeys(broken, "is not a notebook"),
    }.items():
        notebook.write_bytes(text.encode("latin-1"))
        with pytest.raises(ValueError, match=rf"{notebook.name}.*{words}"):
            parameters.read(notebook)
    notebook.write_text(json.dumps(whole), encoding="utf-8-sig")
    assert parameters.read(notebook) == {}


def test_yaml_reads_what_people_mean(tmp_path):
    """As YAML 1.2 does, and not as 1.1: leading zeros, times, yes and no, dates."""
    file = tmp_path / "03_vit.lab.yaml"
    file.write_text("# why\nlr: 1e-4\nlam: -2.5E-1\nwide: 1_000\nremoved: [.2, 4e-1]\nday: on\n")
    meant = {"lr": 1e-4, "lam": -0.25, "wide": 1000, "removed": [0.2, 0.4], "day": "on"}
    assert parameters.load_file(file) == meant
    file.write_text("# nothing differs\n")
    assert parameters.load_file(file) == {}
    for text, value in {
        **{"1e-4": 1e-4, "[0.2]": [0.2], "40": 40, "'40'": "40", "x/y": "x/y", "1e5": 1e5, "+.5": 0.5, "1.": 1.0},
        **{"010": 10, "-08": -8, "007.5": 7.5, "0x1F": 31, "0o17": 15, "1:30": "1:30", "0b1": "0b1", "0..4": "0..4"},
        **{"no": "no", "Off": "Off", "y": "y", "true": True, "FALSE": False, "~": None, "": None, "null": None},
        **{"2024-01-01": "2024-01-01", "=": "=", "{a: {b: 010}}": {"a": {"b": 10}}},
    }.items():
        assert repr(parameters.load_value(text)) == repr(value), text


def test_yaml_that_is_none_is_refused(tmp_path):
    file = tmp_path / "03_vit.lab.yaml"
    for said, texts in {
        "one `name: value` a line": ["- 1\n- 2\n", "7"],
        "stands there twice": ["a: 1\n'a': 2\n", "a: {b: 1, b: 2}"],
        "is no text": ["1: 2", "a: {no: 1, 3: 1}", "? [a]\n: 1", "a: {true: 1}"],
        "a constructor for the tag": ["a: !!python/object:os.system {}", "a: !!python/name:os.system"],
        "4300 digits": ["a: 1" + "0" * 5000],
        "special characters": ["a: \0"],
        "single document": ["a: 1\n--- \nb: 2"],
        "string to float": ["a: .nan", "a: -.Inf"],
        "expected": ["a: [1\n"],
    }.items():
        for text in texts:
            file.write_text(text)
            with pytest.raises(ValueError, match="03_vit") as caught:
                parameters.load_file(file)
            assert said in str(caught.value) and "\n" not in str(caught.value), text[:40]


def test_values_that_no_number_generator_or_file_takes_are_refused():
    loop: list = []
    loop.append(loop)
    nan, inf = float("nan"), float("-inf")
    for value in (10**30, [-(2**63)], {"a": [nan]}, inf, "a\0b", {"a": "\ud800"}, {"a": {1: 2}}, loop, {3}):
        with pytest.raises(ValueError, match="something_else = .* it must be text, finite numbers below"):
            checked("something_else", value)
    checked("something_else", {"λ": [2**63 - 1, 1.5, None, True, "9" * 30]})
    checked("seed", 2**32)
    for name, value in {"seed": 2**33, "seeds": [-(2**33)]}.items():
        with pytest.raises(ValueError, match="than or equal to"):
            checked(name, value)
