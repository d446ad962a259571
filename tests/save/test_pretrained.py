"""Compressed models as transformers opens them: without remote code, with the same logits."""

import copy
import pickle

import peft
import pytest
import torch
import transformers
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE as WEIGHTS

from prehab_lib.factors import LowRankLinear
from prehab_lib.layers import default_layers, linear_layers
from prehab_lib.save.files import DESCRIPTION
from prehab_lib.save.rewrite import split_qkv, to_linear
from prehab_lib.surgery import compress, load, save
from tests.families import CLASSIFIER, FAMILIES, GROUPED, IDS, NARROW, distance, gpt2, headed, llama, logits, tiny

TEXT = [family for family in FAMILIES if family != "vit"]
LABELLED = NARROW | dict(num_labels=3, pad_token_id=0)


def cut(model, removed=0.4, every=2):
    """Half of the layers low-rank, half dense, GPT-2's transposed ones converted."""
    to_linear(model)
    compress(model, "svd", removed, layers=default_layers(model)[::every])
    return model.eval()


def opened(folder):
    """The Auto class's model; nothing may be missing, unexpected or of another shape."""
    classifies = "Classification" in (folder / "config.json").read_text()
    auto = getattr(transformers, f"AutoModel{CLASSIFIER if classifies else 'ForCausalLM'}")
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


def check_both(model, folder, what=""):
    """Our way back and transformers' give the logits to the last bit; returns both models."""
    by_us, by_transformers = load(folder), opened(folder)
    assert torch.equal(logits(by_us), logits(model)) and torch.equal(logits(by_transformers), logits(model)), what
    return by_us, by_transformers


@pytest.mark.parametrize("family", TEXT)
def test_both_ways_back_give_the_logits_to_the_last_bit(family, tmp_path):
    more = {"llama": [torch.float16], "gpt2": [torch.float64]}.get(family, [])
    for dtype in (torch.float32, torch.bfloat16, *more):
        model = cut(tiny(family)).to(dtype)
        folder = save(model, tmp_path / str(dtype))
        files = {WEIGHTS, DESCRIPTION, "config.json", "README.md"}
        files |= {"generation_config.json"} if model.can_generate() else set()
        assert family not in ("bert", "llama") or {file.name for file in folder.iterdir()} == files, dtype
        by_us, by_transformers = check_both(model, folder, dtype)
        assert type(by_us) is type(by_transformers) and isinstance(by_us, type(model))
        assert by_us.config.dtype == by_transformers.config.dtype == by_transformers.dtype == dtype
        assert str(by_transformers) == str(model) and not by_us.training, dtype
        assert all(p.requires_grad for p in by_us.parameters()), dtype
        for again in (by_us, by_transformers):
            check_both(model, save(again, tmp_path / "again"), f"{dtype}, {type(again)} saved again")
            again.save_pretrained(tmp_path / "plain")  # transformers' own saving
            assert torch.equal(logits(opened(tmp_path / "plain")), logits(model)), dtype


def test_biases_ties_positions_and_heads_come_along(tmp_path):
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    split = gpt2()
    split_qkv(split)
    for what, model in (
        ("biases", llama(attention_bias=True, mlp_bias=True)),
        ("tied", llama(tie_word_embeddings=True)),
        ("scaled positions", llama(rope_parameters=stretched)),
        ("Llama classifier", headed("Llama", CLASSIFIER, **(GROUPED | LABELLED))),
        ("OPT classifier", headed("OPT", CLASSIFIER, ffn_dim=48, **LABELLED)),
        ("GPT-2 classifier", headed("GPT2", CLASSIFIER, n_positions=16, **LABELLED)),
        ("split GPT-2", split),
    ):
        cut(model, every=3 if model is split else 2)
        for again in check_both(model, save(model, tmp_path / what), what):
            if what == "tied":
                assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_model_loaded_in_half_precision_keeps_its_frequencies(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    base = cut(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.bfloat16))
    folder = save(base, tmp_path / "model")
    for again in check_both(base, folder):
        assert again.model.rotary_emb.inv_freq.dtype == torch.float32
    assert "inv_freq" not in (folder / "config.json").read_text()


def test_the_backbone_alone(tmp_path):
    for family in ("llama", "opt", "gpt2", "bert"):
        model = cut(tiny(family))
        states = model.base_model(IDS).last_hidden_state
        backbone = transformers.AutoModel.from_pretrained(save(model, tmp_path / "headed"))
        ours = load(save(backbone, tmp_path / "bare"))
        theirs = transformers.AutoModel.from_pretrained(tmp_path / "bare")
        for again in (backbone, ours, theirs):
            assert torch.equal(again.eval()(IDS).last_hidden_state, states), family


def test_shards(tmp_path):
    model = cut(llama(tie_word_embeddings=True))
    folder = save(model, tmp_path / "model", max_shard_size="12KB")
    files = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 16_000 for file in files)
    assert not (folder / WEIGHTS).exists()
    check_both(model, folder)
    files[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"{files[1].name} is missing"):
        load(folder)
    save(model, folder)  # and back to one file, nothing left over
    assert not list(folder.glob("*.index.json")) and torch.equal(logits(load(folder)), logits(model))


def test_merged_is_a_plain_checkpoint_rounded_once(tmp_path):
    """That it says the same is in the table of test_families."""
    model = cut(llama(), every=1).to(torch.bfloat16)
    folder = save(model, tmp_path / "model", merged=True)
    again = opened(folder)
    assert type(again) is transformers.LlamaForCausalLM and torch.equal(logits(load(folder)), logits(again))
    assert not any(isinstance(module, LowRankLinear) for module in again.modules())
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, LowRankLinear))  # it stays
    product = layer.U.weight.double() @ layer.V.weight.double()
    assert torch.equal(again.get_submodule(name).weight, product.to(torch.bfloat16))


def test_a_loaded_model_can_be_cut_further_copied_and_pickled(tmp_path):
    model = load(save(cut(gpt2()), tmp_path / "a"))
    dense = [name for name in default_layers(model) if name in linear_layers(model)]
    assert compress(model, "svd", 0.6, layers=dense).achieved >= 0.6
    twins = [load(save(model, tmp_path / "b")), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(torch.equal(logits(twin), logits(model)) for twin in twins)


def test_settings_of_generation_are_kept(tmp_path):
    model = cut(llama())
    sampling = dict(eos_token_id=[2, 7], do_sample=True, temperature=0.6)
    model.generation_config.update(repetition_penalty=1.3, **sampling)
    for merged in (False, True):
        folder = save(model, tmp_path / "sampling", merged=merged)
        for again in (load(folder), opened(folder)):
            kept = again.generation_config
            assert sampling.items() <= kept.to_dict().items() and kept.repetition_penalty == 1.3, merged


def test_lora_on_the_factors(tmp_path):
    model = opened(save(cut(llama()), tmp_path / "base"))
    config = peft.LoraConfig(r=2, target_modules=["U", "V"], task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(copy.deepcopy(model), config)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        tuned(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert distance(logits(tuned), logits(model)) > 1e-3
    tuned.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(opened(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(tuned))
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(opened(tmp_path / "merged")), logits(merged))


def test_other_ranks_than_the_weights_are_refused(tmp_path):
    folder = save(cut(llama()), tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('q_proj": 9', 'q_proj": 8'))
    assert text != (folder / "config.json").read_text()
    with pytest.raises(RuntimeError, match="mismatch"):
        opened(folder)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moves_between_devices(tmp_path):
    for family in TEXT:
        model = cut(tiny(family))
        here = logits(model)
        folder = save(model.to("cuda"), tmp_path / family)
        with torch.no_grad():
            there = load(folder).to("cuda")(IDS.to("cuda")).logits
            assert torch.equal(there, model(IDS.to("cuda")).logits), family
        assert torch.equal(logits(load(folder)), here) and distance(there.cpu(), here) < 1e-3, family
