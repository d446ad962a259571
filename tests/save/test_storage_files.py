"""The files of a saved model: shards, sizes, folders of earlier versions, what a kill leaves."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from prehab_lib.factors import LowRankLinear
from prehab_lib.save import storage, tensor_files
from prehab_lib.surgery import compress, load, save
from tests.save.test_storage import llama_tied, output, rewrite, timm_small


@pytest.mark.parametrize(("size", "meant"), [(7, 7), ("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("12kb", 12_000)])
def test_sizes_of_files(size, meant):
    assert tensor_files.in_bytes(size) == meant


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "5", "GB", "0KB", "5 TB", None])
def test_other_sizes_are_refused(size, tmp_path):
    with pytest.raises(ValueError, match="max_shard_size"):
        save(timm_small()[0], tmp_path / "model", max_shard_size=size)
    assert list(tmp_path.iterdir()) == []


def test_files_are_as_large_as_allowed_and_hold_every_tensor_once(tmp_path):
    tensors = {f"t{i}": torch.full((n,), float(i)) for i, n in enumerate([1, 9, 2, 30, 1, 1, 4, 4])}
    tensor_files.write(tensors, tmp_path, 40)
    files = sorted(tmp_path.glob("*.safetensors"))
    held = [list(load_file(file)) for file in files]
    assert held == [["t0", "t1"], ["t2"], ["t3"], ["t4", "t5", "t6", "t7"]]
    index = json.loads((tmp_path / tensor_files.INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * 52 and set(index["weight_map"]) == set(tensors)
    assert {k: v.tolist() for k, v in tensor_files.read(tmp_path).items()} == {
        k: v.tolist() for k, v in tensors.items()
    }


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
    index = folder / tensor_files.INDEX
    index.write_text(index.read_text().replace(second.name, f"../../{second.name}"))
    with pytest.raises(ValueError, match="is no file of its folder"):
        load(folder)
    index.write_text("{")
    with pytest.raises(ValueError, match="index.json is damaged"):
        load(folder)


def test_a_process_killed_while_it_writes_leaves_the_earlier_model(tmp_path, monkeypatch):
    """A kill cleans up nothing: neither must this test's model of it."""
    folder = save(timm_small()[0], tmp_path / "model")
    before = (folder / storage.WEIGHTS).read_bytes()

    class Killed(BaseException):
        pass

    def killed(tensors, path):
        path.write_bytes(b"half of")
        raise Killed

    model, x = timm_small()
    with monkeypatch.context() as death:
        death.setattr("prehab_lib.save.tensor_files.write_file", killed)
        death.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            save(model, folder)
    assert (folder / storage.WEIGHTS).read_bytes() == before and load(folder)
    assert torch.equal(output(load(save(model, folder)), x), output(model, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folder_from_before_the_registration_still_loads(dtype, tmp_path):
    """Its tensors lie in one file with every buffer, and prehab.json alone describes it."""
    model, x = llama_tied()
    compress(model, "svd", 0.4)
    model = model.to(dtype)
    folder = save(model, tmp_path / "model")
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    for file in folder.iterdir():
        if file.name != storage.DESCRIPTION:
            file.unlink()
    save_file(tensors, folder / storage.WEIGHTS)
    rewrite(folder, lambda d: [d.pop(name) for name in ("rounded", "buffers")])
    assert torch.equal(output(load(folder), x), output(model, x))


def test_a_folder_that_lost_its_buffers_is_not_loaded_half(tmp_path):
    folder = save(llama_tied()[0], tmp_path / "model")
    (folder / storage.BUFFERS).unlink()
    with pytest.raises(FileNotFoundError, match=r"buffers.safetensors is missing"):
        load(folder)
