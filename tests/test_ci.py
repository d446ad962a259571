""".ci/run: Chromium is installed where it may be, and nothing stops the tests where it may not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "run"
pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="the script is for sh")


@pytest.fixture
def run(tmp_path):
    """run(name="its body", ...) -> what .ci/run printed, on a PATH that has these programs, a `make`, and little else."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name in ("sh", "env", "dirname", "touch", "chmod", "timeout"):
        (bin / name).symlink_to(shutil.which(name))

    def start(**programs: str) -> str:
        for name, body in ({"make": 'echo "make $*"'} | programs).items():
            file = bin / name.replace("_", "-")
            file.write_text(f"#!{shutil.which('sh')}\n{body}\n")
            file.chmod(0o755)
        done = subprocess.run([SCRIPT], env={"PATH": str(bin)}, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return start


APT = 'echo "$*" >> "$0.log"; case "$*" in *install*) touch "${0%/*}/chromium"; chmod +x "${0%/*}/chromium";; esac'


def log(tmp_path) -> str:
    file = tmp_path / "bin" / "apt-get.log"
    return file.read_text() if file.is_file() else ""


def test_root_with_apt_installs_chromium_and_then_runs_the_tests(run, tmp_path):
    assert run(id="echo 0", apt_get=APT) == "make test\n"
    assert "install" in log(tmp_path) and "chromium" in log(tmp_path)


def test_what_is_installed_is_not_installed_again(run, tmp_path):
    assert run(id="echo 0", apt_get=APT, chromium="true") == "make test\n"
    assert log(tmp_path) == ""


def test_sudo_without_a_password_will_do(run, tmp_path):
    assert run(id="echo 1000", sudo='shift; exec "$@"', true="exit 0", apt_get=APT) == "make test\n"
    assert "install" in log(tmp_path)


@pytest.mark.parametrize(
    "programs",
    [
        {"id": "echo 0"},  # no apt
        {"id": "echo 1000", "apt_get": APT},  # no rights, no sudo
        {"id": "echo 1000", "apt_get": APT, "sudo": "exit 1"},  # sudo asks for a password
        {"id": "echo 0", "apt_get": "echo cannot reach >&2; exit 100"},  # no network
    ],
)
def test_where_it_cannot_be_installed_a_sentence_says_so_and_the_tests_run(run, programs):
    said = run(**programs).splitlines()
    assert said == ["no Chromium here, and it could not be installed: the browser tests will be skipped", "make test"]
    assert os.access(SCRIPT, os.X_OK)
