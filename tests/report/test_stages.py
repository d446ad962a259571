"""Stages of a long run: whole or not at all, and the same with and without a runner."""

import json

import pytest
import torch

from prehab_lib.report.stages import Stages

FACTS = {"loss": 0.1, "parts": [1.5, float("inf")], "of": None}
TENSORS = {"W": torch.arange(6.0).view(2, 3).T, "ids": torch.tensor([1, 2])}  # one is not contiguous
TENSORS["again"] = TENSORS["W"]  # and one is shared


@pytest.mark.parametrize("named", [True, False])
def test_a_stage_comes_back_as_it_was_kept(named, tmp_path, monkeypatch):
    monkeypatch.setenv("PREHAB_STAGES", str(tmp_path / "of" / "a run")) if named else monkeypatch.delenv(
        "PREHAB_STAGES", raising=False
    )
    stages = Stages()
    assert "treated" not in stages
    stages.put("treated", FACTS, TENSORS)
    stages.put("svd at 0.2", [1, 2])
    facts, tensors = stages.get("treated")
    assert facts == FACTS and stages.get("svd at 0.2") == ([1, 2], {})
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert ("treated" in Stages()) == named  # the next process goes on, if a runner named the folder


def test_what_is_cut_off_is_no_stage(tmp_path, monkeypatch):
    """The tensors are written first and the facts last."""
    monkeypatch.setenv("PREHAB_STAGES", str(tmp_path))
    with pytest.raises(TypeError):
        Stages().put("treated", {"what JSON has not": object()}, TENSORS)
    assert "treated" not in Stages()
    Stages().put("treated", FACTS, TENSORS)
    assert json.loads((tmp_path / "treated.json").read_text()) == FACTS
