"""One tiny model of every family the library knows by name, random weights, nothing fetched."""

from functools import partial, wraps

import torch
import transformers
from torch import nn

from prehab_lib.save.models import build

NARROW = dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
SIZES = NARROW | dict(intermediate_size=48)
GROUPED = SIZES | dict(num_key_value_heads=2, initializer_range=0.2)  # k and v are half as tall as q
# Token ids a generation may end with; the families' own lie outside so small a vocabulary.
ENDS = dict(bos_token_id=1, eos_token_id=2)
CLASSIFIER = "ForSequenceClassification"
IDS = torch.arange(24).view(2, 12)


def seeded(make):
    """The maker with the same weights at every call; the caller's random state stays."""

    @wraps(make)
    def made(*args, **kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return make(*args, **kwargs)

    return made


@seeded
def vit(depth: int = 2, **kwargs) -> nn.Module:
    """With matrices ten times timm's: at a standard deviation of 0.02 the blocks would hardly be heard in the logits."""
    sizes = dict(img_size=16, patch_size=8, embed_dim=32, depth=depth, num_heads=4, num_classes=7)
    recipe = {"library": "timm", "class": "VisionTransformer", "kwargs": sizes | kwargs}
    model = build(recipe)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(10)
    return model


@seeded
def headed(kind: str, head: str = "ForCausalLM", **sizes) -> nn.Module:
    """What transformers calls by both names together."""
    return getattr(transformers, kind + head)(getattr(transformers, f"{kind}Config")(**sizes))


bert = partial(headed, "Bert", CLASSIFIER, num_labels=3, initializer_range=0.2, **SIZES)
llama = partial(headed, "Llama", **GROUPED)
mistral = partial(headed, "Mistral", **GROUPED)
qwen2 = partial(headed, "Qwen2", tie_word_embeddings=True, **GROUPED)
# Heads of 16 on a width of 32: q is (64, 32), k and v are (32, 32), o is (32, 64).
qwen3 = partial(headed, "Qwen3", head_dim=16, **GROUPED)
# Embeddings of 16 on a width of 32, so that project_in and project_out exist, as in OPT-350m.
opt = partial(headed, "OPT", word_embed_proj_dim=16, init_std=0.2, ffn_dim=48, **NARROW)
# As transformers builds it: with `Conv1D`, the head tied to the embedding.
gpt2 = partial(headed, "GPT2", "LMHeadModel", n_positions=16, initializer_range=0.2, **NARROW, **ENDS)

# Family -> (maker, linear layers a block, layers beside the blocks).
FAMILIES = {
    "vit": (vit, 4, 1),
    "bert": (bert, 6, 0),
    "llama": (llama, 7, 0),
    "mistral": (mistral, 7, 0),
    "qwen2": (qwen2, 7, 0),
    "qwen3": (qwen3, 7, 0),
    "opt": (opt, 6, 0),
    "gpt2": (gpt2, 4, 0),
}


def tiny(family: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The family's model, in eval mode."""
    return FAMILIES[family][0]().to(dtype).eval()


def inputs_of(model: nn.Module) -> torch.Tensor:
    """Two images (2, 3, 16, 16) in the model's dtype, or two sequences of token ids (2, 12)."""
    if type(model).__module__.startswith("timm."):
        generator = torch.Generator().manual_seed(0)
        return torch.rand(2, 3, 16, 16, generator=generator).to(next(model.parameters()).dtype)
    return IDS


def logits(model: nn.Module) -> torch.Tensor:
    """What the model says of `inputs_of` it, in eval mode, without gradients."""
    with torch.no_grad():
        out = model.eval()(inputs_of(model))
    return getattr(out, "logits", out)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """‖ours − theirs‖ / ‖theirs‖."""
    return float((ours - theirs).double().norm() / theirs.double().norm())


PADDED = ENDS | dict(pad_token_id=0)
EXPERTS = GROUPED | dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, decoder_sparse_step=1)
EXPERTS |= dict(shared_expert_intermediate_size=24)
HEADS = dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=8)
PICTURE = dict(image_size=16, patch_size=4)
SEEN = PICTURE | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
READ = SIZES | dict(max_position_embeddings=16, projection_dim=16)
T5_SIZES = dict(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
DISTIL = dict(vocab_size=40, dim=32, n_layers=2, n_heads=4, hidden_dim=48, initializer_range=0.2)
SWIN = PICTURE | dict(embed_dim=32, depths=[2], num_heads=[4], window_size=2, num_labels=3)


@seeded
def gemma3() -> nn.Module:
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**HEADS, **GROUPED))


# What transformers' users ask for: family -> its model, tiny.  The table of docs/your_model.md has a row for each.
ASKED = {
    "LLaMA": llama,
    "Mistral": mistral,
    "Qwen2": qwen2,
    "Qwen3": qwen3,
    "Qwen2-MoE": partial(headed, "Qwen2Moe", **EXPERTS),
    "Mixtral": partial(headed, "Mixtral", num_local_experts=4, **GROUPED),
    "Gemma 1": partial(headed, "Gemma", head_dim=8, **GROUPED),
    "Gemma 2": partial(headed, "Gemma2", **HEADS, **GROUPED),
    "Gemma 3": gemma3,
    "Phi-3": partial(headed, "Phi3", **GROUPED, **PADDED),
    "OLMo2": partial(headed, "Olmo2", **GROUPED, **PADDED),
    "Cohere": partial(headed, "Cohere", **GROUPED, **PADDED),
    "StableLM": partial(headed, "StableLm", **GROUPED),
    "GPT-NeoX": partial(headed, "GPTNeoX", initializer_range=0.2, **SIZES),
    "OPT": opt,
    "GPT-2": gpt2,
    "Falcon": partial(headed, "Falcon", **NARROW, **ENDS),
    "T5": partial(headed, "T5", "ForConditionalGeneration", initializer_factor=2.0, **T5_SIZES),
    "BERT": bert,
    "RoBERTa": partial(headed, "Roberta", CLASSIFIER, num_labels=3, initializer_range=0.2, **SIZES),
    "DistilBERT": partial(headed, "DistilBert", CLASSIFIER, num_labels=3, **DISTIL),
    "ViT": partial(headed, "ViT", "ForImageClassification", num_labels=3, **SEEN),
    "DeiT": partial(headed, "DeiT", "ForImageClassification", num_labels=3, **SEEN),
    "Swin": partial(headed, "Swin", "ForImageClassification", **SWIN),
    "CLIP": partial(headed, "CLIP", "Model", text_config=READ, vision_config=SEEN | {"projection_dim": 16}),
}
