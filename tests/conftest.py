"""What tests of several files ask for by name: small notebooks for the runner, caches of their own."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from prehab_lib.stats import collect
from tests.helpers import Toy, toy_batches
from tests.stack import everything

# Another seed draws every unseeded weight and input of the suite anew: what passes with one should pass with all.
SEED = int(os.environ.get("PREHAB_TEST_SEED", "0"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Every test starts from the same random state, before its fixtures, whatever ran before it in the same process."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def write_notebook(path: Path, *cells: str, parameters: str = "", last: bool = False) -> Path:
    """A notebook file with one code cell a string; `parameters` becomes the tagged cell in front; last: it reads all runs."""
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    if last:
        metadata["prehab"] = {"last": True}
    written = []
    for source in (parameters, *cells) if parameters else cells:
        cell = {"cell_type": "code", "id": f"cell{len(written)}", "metadata": {}, "execution_count": None}
        written.append(cell | {"outputs": [], "source": source.splitlines(keepends=True)})
    if parameters:
        written[0]["metadata"] = {"tags": ["parameters"]}
    content = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": written}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


@pytest.fixture(name="write_notebook")
def write_notebook_fixture():
    return write_notebook


@pytest.fixture
def toy():
    """A small model, its batches and their statistics."""
    model, batches = Toy(), toy_batches()
    return model, batches, collect(model, batches)


@pytest.fixture(scope="session")
def given():
    """What an allocation may ask for, once for all tests: whoever changes it puts it back."""
    torch.set_num_threads(1)
    return everything()


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """Caches below tmp_path, and no data but what the test names."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("PREHAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PREHAB_DATA", raising=False)
