"""The files of a saved model: shards, and what a kill leaves."""

from pathlib import Path

import pytest
import torch

from prehab_lib.factors import LowRankLinear
from prehab_lib.save import storage
from prehab_lib.save.files import INDEX, WEIGHTS
from prehab_lib.surgery import compress, load, save
from tests.save.test_storage import llama_tied, output, timm_small


def test_a_timm_model_in_shards_and_merged(tmp_path):
    model, x = timm_small()
    compress(model, "svd", 0.4)
    save(model, tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert torch.equal(output(load(tmp_path / "shards"), x), output(model, x))
    dense = load(save(model, tmp_path / "dense", merged=True))
    assert not any(isinstance(module, LowRankLinear) for module in dense.modules())
    assert torch.allclose(output(dense, x), output(model, x), atol=1e-5)


def test_a_missing_shard_or_a_foreign_index_is_named(tmp_path):
    folder = save(timm_small()[0], tmp_path / "model", max_shard_size="8KB")
    second = sorted(folder.glob("*.safetensors"))[1]
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(FileNotFoundError, match=f"{second.name} is missing"):
        load(folder)
    second.write_bytes(content)
    index = folder / INDEX
    index.write_text(index.read_text().replace(second.name, f"../../{second.name}"))
    with pytest.raises(ValueError, match="is no file of its folder"):
        load(folder)
    index.write_text("{")
    with pytest.raises(ValueError, match="index.json is damaged"):
        load(folder)


def test_a_process_killed_while_it_writes_leaves_the_earlier_model(tmp_path, monkeypatch):
    """A kill cleans up nothing: neither must this test's model of it."""
    folder = save(timm_small()[0], tmp_path / "model")
    before = (folder / WEIGHTS).read_bytes()

    class Killed(BaseException):
        pass

    def killed(tensors, path, **_):
        Path(path).write_bytes(b"half of")
        raise Killed

    model, x = timm_small()
    with monkeypatch.context() as death:
        death.setattr("safetensors.torch.save_file", killed)
        death.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            save(model, folder)
    assert (folder / WEIGHTS).read_bytes() == before and load(folder)
    assert torch.equal(output(load(save(model, folder)), x), output(model, x))


def test_a_folder_that_lost_its_buffers_is_not_loaded_half(tmp_path):
    folder = save(llama_tied()[0], tmp_path / "model")
    (folder / storage.BUFFERS).unlink()
    with pytest.raises(FileNotFoundError, match=r"buffers.safetensors is missing"):
        load(folder)
