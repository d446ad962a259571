"""One folder is replaced by another: what is stopped, killed, left behind, or belongs to somebody else."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE as INDEX
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE as WEIGHTS
from transformers import AutoTokenizer

from prehab_lib.save import files
from prehab_lib.save.files import DESCRIPTION
from prehab_lib.surgery import compress, load, save
from prehab_lib.tasks.tokenizers import train_bpe
from tests.families import llama, logits, vit
from tests.save.test_storage import names, read, refused, rewrite, same

WORK = "years of work"


@pytest.fixture
def folder(tmp_path):
    return save(vit(), tmp_path / "model")


def other():
    model = vit()
    with torch.no_grad():
        model.head.bias.fill_(3.0)
    return model


def stop_renames(monkeypatch, which):
    """KeyboardInterrupt instead of the renames with these numbers."""
    rename, count = Path.rename, iter(range(1, 100))

    def interrupted(self, target):
        if next(count) in which:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)


def test_a_process_killed_at_any_time_leaves_the_earlier_model(folder, monkeypatch):
    """A kill cleans up nothing: neither must this test's model of it.  The index of shards that lies about afterwards
    would win over the next model's single file.
    """

    def killed(*_, **__):
        raise KeyboardInterrupt

    for step in ("safetensors.torch.save_file", "pathlib.Path.write_text"):
        with monkeypatch.context() as death:
            death.setattr(shutil, "rmtree", lambda *_, **__: None)
            death.setattr(step, killed)
            assert refused(KeyboardInterrupt, save, other(), folder, max_shard_size="8KB") == "", step
        assert same(vit(), folder), step
    assert list(folder.parent.glob(f".model.*.part/new/{INDEX}"))
    save(other(), folder)
    assert names(folder) == {WEIGHTS, DESCRIPTION} and same(other(), folder)


def test_a_published_folder_is_as_open_as_any_other(folder, tmp_path):
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_ctrl_c_between_the_two_moves_leaves_the_earlier_model(folder, monkeypatch):
    for number in (1, 2):
        with monkeypatch.context() as stop:
            stop_renames(stop, {number})
            assert refused(KeyboardInterrupt, save, other(), folder) == "", number
        assert names(folder.parent) == {"model"} and same(vit(), folder), number


def test_after_a_kill_between_the_two_moves_the_error_says_where_the_model_is(folder, monkeypatch):
    """Both moves after the first fail, so nothing is cleaned up: as a kill leaves it."""
    with monkeypatch.context() as kill:
        stop_renames(kill, {2, 3})
        assert refused(KeyboardInterrupt, save, other(), folder) == ""
    said = refused(FileNotFoundError, load, folder)
    left = Path(re.search("a save was killed and left its model in (.*), move it back", said)[1])
    assert same(vit(), left)
    left.rename(folder)
    assert same(vit(), folder)


def test_folders_with_somebody_elses_files_are_left_alone(folder, tmp_path):
    before = (folder / WEIGHTS).read_bytes()
    whole = (folder / DESCRIPTION).read_text()
    for name in ("thesis.tex", "notes/thesis.tex", "model (copy).safetensors"):
        (folder / DESCRIPTION).write_text(whole)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(WORK)
        assert f"holds {name!r}, which is no file of the saved model" in refused(ValueError, save, vit(), folder)
        for damage in (lambda d: d.pop("files"), lambda d: d.update(files=1)):
            rewrite(folder, damage)
            assert "is no file of the saved model that would be replaced" in refused(ValueError, save, vit(), folder)
        assert (folder / name).read_text() == WORK and (folder / WEIGHTS).read_bytes() == before, name
        (folder / name).unlink()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text(WORK)
    for target in (tmp_path / "home", tmp_path / "home" / "thesis.tex"):
        assert "holds other files than a saved model" in refused(ValueError, save, vit(), target)
    assert (tmp_path / "home" / "thesis.tex").read_text() == WORK
    (tmp_path / "empty").mkdir()
    assert same(vit(), save(vit(), tmp_path / "empty"))


def test_a_file_that_comes_while_the_model_is_written_survives(folder, monkeypatch):
    def slow(tensors, path, **_):
        (folder / "thesis.tex").write_text(WORK)
        Path(path).write_bytes(b"")

    monkeypatch.setattr("safetensors.torch.save_file", slow)
    assert "holds 'thesis.tex'" in refused(ValueError, save, vit(), folder)
    assert (folder / "thesis.tex").read_text() == WORK and names(folder.parent) == {"model"}


def test_all_that_save_and_the_tokenizer_write_is_listed_and_replaced(tmp_path):
    model, tokenizer = llama(), train_bpe(["some text"], 300)
    tokenizer.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    compress(model, "svd", 0.4)
    folder = save(model, tmp_path / "model", tokenizer=tokenizer, max_shard_size="20KB")
    written = files.files_in(folder)
    assert sorted([*read(folder)["files"], DESCRIPTION]) == written
    assert {"tokenizer.json", "README.md", INDEX, "generation_config.json"} < set(written)
    again = AutoTokenizer.from_pretrained(folder)
    assert again("some text")["input_ids"] == tokenizer("some text")["input_ids"]
    save(model, folder, tokenizer=tokenizer)
    assert INDEX not in files.files_in(folder) and torch.equal(logits(load(folder)), logits(model))
