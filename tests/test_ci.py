""".ci/run: Chromium is installed where it may be, and nothing stops the tests where it may not."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci" / "run"
APT = 'echo "$*" >> "$0.log"; case "$*" in *install*) touch "${0%/*}/chromium"; chmod +x "${0%/*}/chromium";; esac'
SKIPPED = "no Chromium here, and it could not be installed: the browser tests will be skipped\n"


def run(bin: Path, **programs: str) -> str:
    """What .ci/run prints on a PATH that has these programs (name="its body"), a `make`, and little else."""
    bin.mkdir()
    for name in ("sh", "env", "dirname", "touch", "chmod", "timeout"):
        (bin / name).symlink_to(shutil.which(name))
    for name, body in ({"make": 'echo "make $*"'} | programs).items():
        file = bin / name.replace("_", "-")
        file.write_text(f"#!{shutil.which('sh')}\n{body}\n")
        file.chmod(0o755)
    done = subprocess.run([SCRIPT], env={"PATH": str(bin)}, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(shutil.which("sh") is None, reason="the script is for sh")
def test_chromium_is_installed_where_it_may_be_and_the_tests_run(tmp_path):
    for case, programs, installed, said in [
        ("root", {"id": "echo 0", "apt_get": APT}, True, ""),
        ("present", {"id": "echo 0", "apt_get": APT, "chromium": "true"}, False, ""),
        ("sudo", {"id": "echo 1000", "sudo": 'shift; exec "$@"', "true": "exit 0", "apt_get": APT}, True, ""),
        ("no apt", {"id": "echo 0"}, False, SKIPPED),
        ("no rights", {"id": "echo 1000", "apt_get": APT}, False, SKIPPED),
        ("password", {"id": "echo 1000", "apt_get": APT, "sudo": "exit 1"}, False, SKIPPED),
        ("no network", {"id": "echo 0", "apt_get": "echo cannot reach >&2; exit 100"}, False, SKIPPED),
    ]:
        assert run(tmp_path / case, **programs) == said + "make test\n", case
        log = tmp_path / case / "apt-get.log"
        assert (log.is_file() and "install" in log.read_text()) == installed, case
    assert os.access(SCRIPT, os.X_OK)
