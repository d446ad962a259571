"""One folder is replaced by another: what is stopped, killed, left behind, or belongs to somebody else."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from prehab_lib.save import files, storage
from prehab_lib.save.files import WEIGHTS
from prehab_lib.surgery import compress, load, save
from prehab_lib.tasks.tokenizers import train_bpe
from tests.families import llama
from tests.save.test_storage import output, rewrite, timm_small


@pytest.fixture
def folder(tmp_path):
    return save(timm_small()[0], tmp_path / "model")


def stop_renames(monkeypatch, which):
    """KeyboardInterrupt instead of the renames with these numbers."""
    rename, count = Path.rename, iter(range(1, 100))

    def interrupted(self, target):
        if next(count) in which:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)


def same(model, folder):
    x = torch.ones(2, 1, 8, 16)
    return torch.equal(output(load(folder), x), output(model, x))


def test_what_a_killed_save_left_is_not_published_with_the_next_model(tmp_path, monkeypatch):
    """Its index of shards would win over the new model's single file."""
    killed = timm_small()[0]
    with monkeypatch.context() as death:
        death.setattr(storage, "files_in", lambda _: os.abort)  # not JSON: the last thing that is written
        death.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(TypeError):
            save(killed, tmp_path / "model", max_shard_size="8KB")
    assert list(tmp_path.glob(".model.*.part/new/model-00002-of-*.safetensors"))
    model = timm_small()[0]
    with torch.no_grad():
        model.head.bias.fill_(3.0)
    published = save(model, tmp_path / "model")
    assert {file.name for file in published.iterdir()} == {"model.safetensors", "prehab.json"}
    assert same(model, published) and not same(killed, published)


def test_leftovers_named_after_this_process_are_not_used_or_in_the_way(tmp_path):
    for kind in ("part", "old"):
        stale = save(timm_small()[0], tmp_path / "stale", max_shard_size="8KB")
        stale.rename(tmp_path / f".model.{os.getpid()}.{kind}")
    model = timm_small()[0]
    for _ in range(2):
        published = save(model, tmp_path / "model")
        assert {file.name for file in published.iterdir()} == {"model.safetensors", "prehab.json"}


def test_a_published_folder_is_as_open_as_any_other(folder, tmp_path):
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("rename", [1, 2])
def test_ctrl_c_between_the_two_moves_leaves_the_earlier_model(folder, monkeypatch, rename):
    before, other = load(folder), timm_small()[0]
    with torch.no_grad():
        other.head.bias.fill_(3.0)
    stop_renames(monkeypatch, {rename})
    with pytest.raises(KeyboardInterrupt):
        save(other, folder)
    assert [file.name for file in folder.parent.iterdir()] == ["model"]
    assert same(before, folder) and not same(other, folder)


def test_after_a_kill_between_the_two_moves_the_error_says_where_the_model_is(folder, monkeypatch):
    """Both moves after the first fail, so nothing is cleaned up: as a kill leaves it."""
    before = load(folder)
    with monkeypatch.context() as kill:
        stop_renames(kill, {2, 3})
        with pytest.raises(KeyboardInterrupt):
            save(timm_small()[0], folder)
    with pytest.raises(FileNotFoundError, match="a save was killed and left its model in .*, move it back") as said:
        load(folder)
    left = files.left_at(folder)
    assert str(left) in str(said.value) and same(before, left)
    left.rename(folder)
    assert same(before, folder) and files.left_at(folder) is None


@pytest.mark.parametrize("name", ["thesis.tex", "notes/thesis.tex", "model (copy).safetensors"])
def test_a_saved_model_with_somebody_elses_file_is_left_alone(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("years of work")
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match=f"holds {name!r}".replace("(", r"\(").replace(")", r"\)")):
        save(timm_small()[0], folder)
    for damage in (lambda d: d.pop("files"), lambda d: d.update(files=1)):
        rewrite(folder, damage)
        with pytest.raises(ValueError, match="is no file of the saved model that would be replaced"):
            save(timm_small()[0], folder)
    assert (folder / name).read_text() == "years of work" and (folder / WEIGHTS).read_bytes() == before


def test_a_file_that_comes_while_the_model_is_written_survives(folder, monkeypatch):
    def slow(tensors, path, **_):
        (folder / "thesis.tex").write_text("years of work")
        Path(path).write_bytes(b"")

    monkeypatch.setattr("safetensors.torch.save_file", slow)
    with pytest.raises(ValueError, match=r"holds 'thesis.tex'"):
        save(timm_small()[0], folder)
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert [file.name for file in folder.parent.iterdir()] == ["model"]


def test_all_that_save_and_the_tokenizer_write_is_listed_and_replaced(tmp_path):
    model, tokenizer = llama(), train_bpe(["some text"], 300)
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    compress(model, "svd", 0.4)
    folder = save(model, tmp_path / "model", tokenizer=tokenizer, max_shard_size="20KB")
    written = files.files_in(folder)
    listed = json.loads((folder / storage.DESCRIPTION).read_text())["files"]
    assert sorted([*listed, storage.DESCRIPTION]) == written
    assert {"tokenizer.json", "README.md", "model.safetensors.index.json", "generation_config.json"} < set(written)
    save(model, folder, tokenizer=tokenizer)
    assert files.files_in(folder) != written


@pytest.mark.parametrize("merged", [False, True])
def test_generation_settings_are_kept(merged, tmp_path):
    from transformers import AutoModelForCausalLM

    model = llama()
    model.generation_config.update(eos_token_id=[2, 7], do_sample=True, temperature=0.6)
    compress(model, "svd", 0.4)
    folder = save(model, tmp_path / "model", merged=merged)
    for again in (load(folder), AutoModelForCausalLM.from_pretrained(folder)):
        settings = again.generation_config
        assert (settings.eos_token_id, settings.do_sample, settings.temperature) == ([2, 7], True, 0.6)
