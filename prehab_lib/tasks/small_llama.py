"""A small LLaMA, trained on the spot, and the base model of a language task."""

import copy
import math

import torch
from torch import nn

from prehab_lib.batches import mode
from prehab_lib.inputs import check_options, check_positive, check_whole
from prehab_lib.save import models
from prehab_lib.scale.skeleton import causal_config
from prehab_lib.tasks import training
from prehab_lib.tasks.language import LanguageTask
from prehab_lib.tasks.perplexity import language_loss, perplexity

WARMUP = 20  # steps over which the learning rate rises
VALIDATE_EVERY = 100  # steps
PATIENCE = 3  # validations in a row without a better one, before training stops


def small_llama(
    vocabulary: int, depth=3, width=64, heads=4, kv_heads=2, seed=0, positions=256
) -> nn.Module:
    """transformers' `LlamaForCausalLM`, random weights from `seed`; BOS and EOS of `train_bpe`."""
    import transformers

    sizes = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads)
    sizes |= dict(num_key_value_heads=kv_heads, intermediate_size=5 * width // 2)
    sizes |= dict(vocab_size=vocabulary, max_position_embeddings=positions)
    sizes |= dict(initializer_range=width**-0.5, bos_token_id=0, eos_token_id=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))


def pretrain(model: nn.Module, task: LanguageTask, *, seed: int, steps: int, lr=1e-2) -> None:
    """Train every parameter by AdamW on random windows, in place; the best weights are kept.

    They have the lowest perplexity on `task.chosen_on`, which is taken every `VALIDATE_EVERY` steps
    and at the end.  After three in a row without a better one training stops.  Raises ValueError
    for a bad number, or as `training.descend` does.
    """
    check_whole(0, steps=steps)
    check_positive(lr=lr)

    def rate(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / max(steps, 1))
        return min(1.0, (step + 1) / (WARMUP + 1)) * cosine

    schedule = training.adamw(model, rate, lr=lr, weight_decay=0.05, betas=(0.9, 0.95))
    batches, best, kept, worse = task.train(seed, steps), math.inf, None, 0
    with mode(model, training=True):
        descent = training.descend(model, batches, language_loss, schedule, "training", clip=1.0)
        for step, _ in enumerate(descent, start=1):
            if step % VALIDATE_EVERY and step < steps:
                continue
            value, worse = perplexity(model, task.chosen_on), worse + 1
            if value < best:
                best, kept, worse = value, copy.deepcopy(model.state_dict()), 0
            if worse == PATIENCE:
                break
    if kept:
        model.load_state_dict(kept)
    model.zero_grad()  # also where training stopped early


def base_model(
    task: LanguageTask, checkpoint: str, *, seed, device="cpu", small=None, dtype="auto", **recipe
) -> tuple[nn.Module, str]:
    """The language model of a task before prehab, as `training.base_model` gives it; or "given".

    checkpoint: "small" trains `small_llama(**small)` by `pretrain(**recipe)`, once.  Else the hub
    name or folder of a causal language model, used as it is, in dtype ("auto": as it is stored).
    Raises as `models.text_model`, `skeleton.causal_config` and `check_fits` do.
    """
    if checkpoint != training.SMALL:
        causal_config(checkpoint)
        model = models.text_model(checkpoint, "AutoModelForCausalLM", dtype=dtype)
        task.check(model)
        return model.to(device).eval(), "given"
    small = {"positions": max(256, task.window)} | (small or {})
    check_options("small", small, small_llama)
    model = small_llama(len(task.tokenizer), seed=seed, **small)
    task.check(model)
    fed = dict(window=task.window, batch=task.batch, text=[task.training, task.chosen_on.ids])
    return training.base_model(model, pretrain, task, device, seed, recipe, **fed)
