"""Stages of a long run: whole or not at all, and the same with and without a runner."""

import pytest
import torch

from prehab_lib.report import stages

FACTS = {"loss": 0.1, "parts": [1.5, float("inf")], "of": None}
TENSORS = {"W": torch.arange(6.0).view(2, 3).T, "ids": torch.tensor([1, 2])}  # one is not contiguous
TENSORS["again"] = TENSORS["W"]  # and one is shared


@pytest.mark.parametrize("named", [True, False])
def test_a_stage_comes_back_as_it_was_kept(named, tmp_path, monkeypatch):
    monkeypatch.setenv("PREHAB_STAGES", str(tmp_path / "of" / "a run") if named else "")
    kept = stages.Stages()
    assert "treated" not in kept
    kept.put("treated", FACTS, TENSORS)
    kept.put("svd at 0.2", [1, 2])
    facts, tensors = kept.get("treated")
    assert facts == FACTS and kept.get("svd at 0.2") == ([1, 2], {})
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert ("treated" in stages.Stages()) == named  # the next process goes on, if a runner named the folder


def test_what_is_cut_off_is_no_stage(tmp_path, monkeypatch):
    """Killed while the tensors are written, or the facts, which come last."""
    monkeypatch.setenv("PREHAB_STAGES", str(tmp_path))
    with pytest.raises(TypeError):
        stages.Stages().put("treated", {"what JSON has not": object()}, TENSORS)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(stages, "save_file", lambda *_: 1 / 0)
        stages.Stages().put("treated", FACTS, TENSORS)
    assert "treated" not in stages.Stages()
