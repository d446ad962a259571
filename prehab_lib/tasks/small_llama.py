"""A LLaMA small enough to be trained on the spot, and the base model of a language task by any of
its doors.
"""

import math
import sys

import torch
from torch import nn

from prehab_lib.batches import mode
from prehab_lib.inputs import check_options, check_positive, check_whole
from prehab_lib.save import models
from prehab_lib.scale.skeleton import causal_config
from prehab_lib.tasks import language, training, windows
from prehab_lib.tasks import perplexity as scoring
from prehab_lib.tasks.language import LanguageTask
from prehab_lib.tasks.perplexity import language_loss, perplexity
from prehab_lib.tasks.training import SMALL, Best

PATIENCE = 3  # validations in a row without a better one, before training stops
# Modules whose code decides the trained weights, beside those of `training`.
DECIDING = (sys.modules[__name__], language, windows, scoring)


def small_llama(
    vocabulary: int,
    depth: int = 3,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
    positions: int = 256,
) -> nn.Module:
    """transformers' `LlamaForCausalLM` with grouped-query attention, random weights from `seed`.

    kv_heads: heads of keys and values, a divisor of `heads`.  Token 0 is BOS and 1 EOS, as in
    `tokenizers.train_bpe`.
    """
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=5 * width // 2,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        initializer_range=width**-0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)


def pretrain(
    model: nn.Module,
    task: LanguageTask,
    *,
    seed: int,
    steps: int,
    lr: float = 1e-2,
    warmup: int = 20,
    validate_every: int = 100,
) -> list[dict]:
    """Train every parameter by AdamW on random windows, in place, and keep the weights of the best
    validation.

    The learning rate rises over `warmup` steps and falls as a cosine.  Every `validate_every`
    steps, and at the end, the perplexity of the task's validation windows is taken; after three in
    a row without a better one training stops.  Returns a row for each of them: step, loss (mean of
    the steps since the last), validation.  Raises ValueError for a bad number, or a loss that is no
    longer finite.
    """
    check_whole(0, steps=steps, warmup=warmup)
    check_whole(1, validate_every=validate_every)
    check_positive(lr=lr)

    def rate(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / max(steps, 1))
        return min(1.0, (step + 1) / (warmup + 1)) * cosine

    settings = dict(lr=lr, weight_decay=0.05, betas=(0.9, 0.95), fused=True)
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    how = dict(optimizer=optimizer, schedule=schedule, what="training", clip=1.0)
    best, rows, losses = Best(model.parameters()), [], []
    with mode(model, training=True):
        descent = training.descend(model, task.train(seed, steps), language_loss, **how)
        for step, loss in enumerate(descent, start=1):
            losses.append(loss)
            if step % validate_every == 0 or step == steps:
                value = perplexity(model, task.chosen_on)
                rows.append({"step": step, "loss": sum(losses) / len(losses), "validation": value})
                losses = []
                best.offer(value)
            if best.since >= PATIENCE:
                break
    best.restore()
    model.zero_grad()  # also where training stopped early
    return rows


def base_model(
    task: LanguageTask,
    checkpoint: str,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    small: dict | None = None,
    dtype: str | torch.dtype | None = None,
    **recipe,
) -> tuple[nn.Module, str]:
    """The language model of a task before prehab, in eval mode on `device`, and where it is from:
    "given", "cached" or "trained".

    checkpoint: "small" trains `small_llama(**small)` by `pretrain(**recipe)`, once (`training`).
    Else the hub name or folder of any causal language model of transformers, used as it is.  dtype:
    of a given model's weights, None as they are stored.  Raises as `models.text_model` does, and
    ValueError for a model that is compressed already or no causal one, has no embedding for a token
    of the task's text, or fewer positions than its window.
    """
    if checkpoint != SMALL:
        causal_config(checkpoint)
        options = {} if dtype is None else {"dtype": dtype}
        model = models.text_model(checkpoint, "AutoModelForCausalLM", **options)
        task.check(model)
        return model.to(device).eval(), "given"
    small = {"positions": max(256, task.window)} | (small or {})
    check_options("small", small, small_llama)
    model = small_llama(len(task.tokenizer), seed=seed, **small)
    task.check(model)
    return training.base_model(
        model,
        lambda network: pretrain(network, task, seed=seed, **recipe),
        device,
        code=DECIDING,
        seed=seed,
        recipe=recipe,
        window=task.window,
        batch=task.batch,
        text=[task.training, task.chosen_on.ids],
    )
