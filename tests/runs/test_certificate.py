"""The birth certificate: git's commit of the code, and files written whole."""

import json
import subprocess

import pytest

from prehab_lib.runs import certificate


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
