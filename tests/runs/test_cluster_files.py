"""What cluster/ holds for engines that are not run here: names and numbers that must agree, and commands that must exist."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prehab_lib import __main__
from tests import batch

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
PROFILES = sorted(CLUSTER.glob("*/config.yaml"))
MANIFESTS = [CLUSTER / "kubernetes" / name for name in ("shards.yaml", "last.yaml")]
# Of snakemake-executor-plugin-kubernetes 0.5.1, which the lock does not hold: the fields of its ExecutorSettings.
KUBERNETES = {"namespace", "cpu-scalar", "service-account-name", "privileged", "persistent-volumes"}
needs_snakemake = pytest.mark.skipif(not importlib.util.find_spec("snakemake"), reason="Snakemake is not installed")


def words_of(line: str) -> list[str]:
    """What follows `python -m prehab_lib` in a line of shell, up to the next command, variables replaced by a number."""
    after = line.partition("-m prehab_lib ")[2]
    return shlex.split(re.sub(r"\$\w+", "0", re.split(r"[;|&]| #", after)[0]).strip("'"))


@needs_snakemake
@pytest.mark.parametrize("file", PROFILES, ids=lambda file: file.parent.name)
def test_a_profile_has_options_that_there_are(file):
    from snakemake.cli import get_argument_parser

    there = {option.removeprefix("--") for option in get_argument_parser()._option_string_actions}
    there |= {f"kubernetes-{option}" for option in KUBERNETES}
    chosen = yaml.safe_load(file.read_text())
    assert set(chosen) <= there, set(chosen) - there
    assert chosen["executor"] == file.parent.name
    assert (
        chosen["keep-going"] and chosen["nolock"] and chosen["rerun-incomplete"] and chosen["rerun-triggers"] == "mtime"
    )


def test_slurm_is_asked_what_answers_without_accounting():
    chosen = yaml.safe_load((CLUSTER / "slurm" / "config.yaml").read_text())
    assert chosen["slurm-status-command"] == "squeue" and chosen["slurm-no-account"] is True


def test_the_shell_scripts_parse():
    for script in CLUSTER.rglob("*.sh"):
        subprocess.run(["sh", "-n", script], check=True)
        assert script.stat().st_mode & 0o100, f"{script.name} is not executable"


def test_an_array_task_runs_its_shard_and_a_plain_job_all():
    def said(**environment) -> str:
        words = ["sh", CLUSTER / "slurm" / "array.sh", "lab", "-p", "lam=0.3"]
        told = {"PATH": batch.environment()["PATH"], "PYTHON": "echo"} | environment
        return subprocess.run(words, env=told, capture_output=True, text=True, check=True).stdout.strip()

    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_CPUS_PER_TASK": "5"}
    assert said(**task) == "-m prehab_lib run lab -j 5 --shard 3/8 -p lam=0.3"
    assert said() == "-m prehab_lib run lab -j 2 -p lam=0.3"
    for words in (said(**task), said()):
        __main__.parser().parse_args(shlex.split(words)[2:])


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.stem)
def test_a_manifest_is_one_job_whose_mounts_there_are(file):
    [job] = yaml.safe_load_all(file.read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", job["metadata"]["name"])
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert pod["restartPolicy"] == "Never"
    volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    mounts = [f"{volumes[mount['name']]}:{mount['mountPath']}" for mount in container["volumeMounts"]]
    profile = yaml.safe_load((CLUSTER / "kubernetes" / "config.yaml").read_text())
    assert mounts == profile["kubernetes-persistent-volumes"]
    assert container["image"] == profile["container-image"]
    assert container["workingDir"].startswith(container["volumeMounts"][0]["mountPath"])
    asked, most = container["resources"]["requests"], container["resources"]["limits"]
    assert asked["memory"] == most["memory"] and most["nvidia.com/gpu"] == 1
    [line] = container["args"]
    assert f"--threads {asked['cpu']}" in line
    __main__.parser().parse_args(words_of(line))


def test_an_indexed_job_does_every_shard_and_one_failure_stops_no_other():
    spec = yaml.safe_load(MANIFESTS[0].read_text())["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    line = spec["template"]["spec"]["containers"][0]["args"][0]
    assert f'--shard "$JOB_COMPLETION_INDEX/{spec["completions"]}"' in line
    assert spec["backoffLimitPerIndex"] == 0 and "backoffLimit" not in spec


def test_what_was_not_run_says_so():
    for file in (CLUSTER / "kubernetes").iterdir():
        assert "NOT RUN" in file.read_text(), file.name


def test_the_commands_of_the_guide_exist():
    guide = (CLUSTER / "README.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", guide, re.S) for line in block.splitlines()]
    commands = [words_of(line) for line in lines if "-m prehab_lib " in line]
    assert len(commands) >= 3
    for words in commands:
        __main__.parser().parse_args(words)
    targets = re.findall(r"^(\w+):", (CLUSTER.parent / "Makefile").read_text(), re.M)
    assert set(re.findall(r"\bmake (\w+)", guide)) <= {"lab", *targets}
    for path in re.findall(r"(?:cluster|tests)/[\w./]+\w", guide):
        assert (CLUSTER.parent / path).exists(), path


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["laptop", "pbs"], "no engine 'pbs': choose kubernetes, local, slurm, or a folder"),
        (["laptop"], "A profile through"),
    ],
)
def test_a_wrong_word_to_run_is_told(words, sentence):
    done = subprocess.run([sys.executable, CLUSTER / "run.py", *words], capture_output=True, text=True)
    assert done.returncode == 2 and sentence in done.stderr and done.stdout == ""
