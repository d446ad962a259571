"""One tiny model of every family the library knows by name, random weights, nothing fetched."""

from functools import partial, wraps

import timm
import torch
import transformers
from torch import nn

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
    model = timm.models.VisionTransformer(**(sizes | kwargs))
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
