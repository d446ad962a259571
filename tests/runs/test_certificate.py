"""The birth certificate: which code made a number, at no cost, and files that are whole or not there."""

import json
import subprocess
import sys

import pytest

from prehab_lib.runs import certificate


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    certificate.write_json(path, {"good": 1})
    with pytest.raises(ValueError):
        certificate.write_json(path, {"bad": float("nan")})
    assert json.loads(path.read_text()) == {"good": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_runner_the_profile_is_smoke(monkeypatch):
    monkeypatch.delenv("PREHAB_RUN_DIR", raising=False)
    monkeypatch.delenv("PREHAB_PROFILE", raising=False)
    assert certificate.run_dir() is None and certificate.profile() == "smoke"


def test_it_imports_nothing_heavy():
    code = "import sys; from prehab_lib.runs import certificate; certificate.birth_certificate(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_commit_names_code_that_differs(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True)

    monkeypatch.setattr(certificate, "REPOSITORY", tmp_path)
    assert certificate._commit() is None
    git("init", "-q")
    (tmp_path / "prehab_lib").mkdir()
    (tmp_path / "prehab_lib" / "a.py").write_text("a = 1\n")
    assert certificate._commit() == "no commit yet+dirty"
    git("add", ".")
    git("commit", "-q", "-m", "a")
    (tmp_path / "figure.png").write_text("not code")
    clean = certificate._commit()
    assert len(clean) == 40
    (tmp_path / "prehab_lib" / "a.py").write_text("a = 2\n")
    assert certificate._commit() == clean + "+dirty"
