"""The birth certificate: git's commit of the code, and files written whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prehab_lib.runs import certificate

ROOT = Path(__file__).resolve().parents[2]


def test_the_commit_names_code_that_differs(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    monkeypatch.setattr(certificate, "REPOSITORY", tmp_path)
    assert certificate._commit() is None
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "a.ipynb").write_text("1")
    git("init", "-q")
    assert certificate._commit() == "no commit yet+dirty"
    git("add", "-A")
    git("commit", "-qm", "a")
    (tmp_path / "figure.png").write_text("no code")
    clean = certificate._commit()
    assert len(clean) == 40
    (tmp_path / "notebooks" / "a.ipynb").write_text("2")
    assert certificate._commit() == clean + "+dirty"
    (tmp_path / "notebooks" / "a.ipynb").write_text("1")
    monkeypatch.setenv("GIT_DIR", str(ROOT / ".git"))  # as in a hook of another repository
    assert certificate._commit() == clean
    git("config", "status.showUntrackedFiles", "no")
    (tmp_path / "notebooks" / "b.ipynb").write_text("1")
    assert certificate._commit() == clean + "+dirty"
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        os.chown(tmp_path, 1234, 1234)
        assert certificate._commit() == clean + "+dirty"
    (tmp_path / ".git" / "config").write_text("[")
    assert certificate._commit().startswith("unknown: ") and "config" in certificate._commit()


@pytest.mark.parametrize(("asked", "threads"), [("4,2", 4), ("x", os.cpu_count()), ("0", os.cpu_count()), ("3", 3)])
def test_threads_are_those_of_the_first_level(asked, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert certificate.birth_certificate()["threads"] == threads


def test_a_certificate_says_who_made_a_number(monkeypatch):
    monkeypatch.setenv("PREHAB_PROFILE", "lab")
    monkeypatch.setenv("PREHAB_NOTEBOOK", "03_vit")
    born = json.loads(json.dumps(certificate.birth_certificate()))
    assert (born["profile"], born["notebook"], born["device"]) == ("lab", "03_vit", "cpu")
    assert born["threads"] >= 1 and born["versions"]["torch"] and born["started"].endswith("+00:00")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "folder" / "a.json"
    certificate.write_json(file, {"a": 1})
    with pytest.raises(ValueError):
        certificate.write_json(file, {"a": float("nan")})
    with pytest.raises(RuntimeError), certificate.replacing(file) as draft:
        draft.write_text("half")
        raise RuntimeError
    assert file.read_text() == '{\n "a": 1\n}\n' and list(file.parent.iterdir()) == [file]
