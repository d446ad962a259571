"""`load` raises ValueError in one sentence for whatever a folder may hold: no foreign code, nothing fetched."""

import json
import os
import shutil
import socket
from functools import partial

import pytest
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE as WEIGHTS

from prehab_lib.save.files import DESCRIPTION
from prehab_lib.surgery import load, save
from tests.families import llama
from tests.save.test_pretrained import cut
from tests.save.test_storage import low_rank, refused, rewrite

BRACKETS = "[" * 100_000


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    base = tmp_path_factory.mktemp("saved")
    return {"vit": save(low_rank(), base / "vit"), "llama": save(cut(llama()), base / "llama")}


def inside(*keys, **changes):
    """Change entries of the description, or of what lies below these keys of it."""

    def damage(folder):
        def change(description):
            for key in keys:
                description = description[key]
            description.update(changes)

        rewrite(folder, change)

    return damage


described, recipe = inside, partial(inside, "recipe")
kwargs, config = partial(inside, "recipe", "kwargs"), partial(inside, "recipe", "config")


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def first_tensor(**changes):
    """The weights' file with another header before the same bytes."""

    def damage(folder):
        whole = (folder / WEIGHTS).read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:end])
        next(entry for name, entry in header.items() if name != "__metadata__").update(changes)
        new = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(len(new).to_bytes(8, "little") + new + whole[end:])

    return damage


def torn(keep):
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])


def linked(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


Q = "model.layers.0.self_attn.q_proj"
HUB = {"model_type": "timm_wrapper", "architecture": "hf-hub:evil/model"}
BACKBONE = {"model_type": "timm_backbone", "backbone": "hf-hub:evil/x", "use_pretrained_backbone": True}
DAMAGE = {
    "vit": [
        *(text(DESCRIPTION, content) for content in (BRACKETS, b"\xff\xfe{", "", "[]", "null", "{}")),
        *(described(files=names) for names in (None, [], [5], ["x" * 5000 + ".safetensors"], ["a\0b.safetensors"])),
        *(kwargs(**{name: 0}) for name in ("patch_size", "num_heads", "embed_dim")),
        *(kwargs(depth=value) for value in (-1, "x", None, 3)),
        kwargs(img_size=BRACKETS[:2]),
        kwargs(checkpoint_path="weights.pth"),
        *(recipe(name=name) for name in ("hf-hub:evil/model", "../evil", ["x"])),
        *(recipe(library=library) for library in ("pickle", {}, None)),
        linked,
        *(torn(keep) for keep in (4, 100, 5000)),
        *(text(WEIGHTS, content) for content in (b"", b"\xff" * 64, b"PK\x03\x04" + bytes(64))),
        *(first_tensor(dtype=dtype) for dtype in ("F99", "I32")),
        *(first_tensor(shape=shape) for shape in ([10**18], [-1], "x")),
    ],
    "llama": [
        *(recipe(attention=name) for name in ("evil/kernel", ["evil/kernel"], "evil/kernel@main:f")),
        *(config(**{key: "evil/kernel"}) for key in ("attn_implementation", "_attn_implementation")),
        config(_attn_implementation={"": "evil/kernel"}),
        config(experts_implementation="evil/kernel"),
        described(recipe=None),
        described(rewrites=["os.system"]),
        config(text_config={"attn_implementation": "evil/kernel"}),
        *(config(**{name: 0}) for name in ("num_attention_heads", "num_key_value_heads")),
        *(config(hidden_size=value) for value in ("x", -1, 33)),
        config(model_type="nothing"),
        recipe(**{"class": "TimmWrapperModel", "config": HUB}),
        recipe(**{"class": "TimmBackbone", "config": BACKBONE}),
        recipe(config=BACKBONE),
        *(recipe(**{"class": name}) for name in ("pipeline", "os.system", None, [])),
        *(recipe(config=value) for value in ([], None, "llama")),
        described(ranks={"nowhere": 2}),
        *(described(ranks={Q: rank}) for rank in (-1, 2.5, 10**30, "x")),
        *(described(packed={Q: packing}) for packing in (3, {"x": 1})),
        described(rounded=["nowhere.x"]),
        text("generation_config.json", BRACKETS),
        text("generation_config.json", "{"),
    ],
}


@pytest.mark.parametrize("model", DAMAGE)
def test_each_damage_is_one_sentence(model, saved, tmp_path, monkeypatch):
    def fetched(*_, **__):
        pytest.fail("something was fetched")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", fetched)
    for number, damage in enumerate(DAMAGE[model]):
        folder = shutil.copytree(saved[model], tmp_path / str(number))
        damage(folder)
        said = refused(ValueError, load, folder)
        assert str(folder) in said and "\n" not in said and len(said) < 700, (number, said)


def test_what_is_no_folder_of_ours_is_one_sentence_too(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    llama().save_pretrained(tmp_path / "foreign")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "empty" / DESCRIPTION)
    for name in ("file", "empty", "foreign", "loop", "loop/model", "nowhere", "x" * 300, "a\0b"):
        said = refused(ValueError, load, tmp_path / name)
        assert "is missing" in said or name not in ("empty", "foreign", "nowhere")
        assert said and not said.startswith("no") and "\n" not in said, (name, said)
