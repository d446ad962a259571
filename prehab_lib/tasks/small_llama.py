"""A LLaMA small enough to be trained on the spot, and the base model of a language task by any of
its doors.
"""

import hashlib
import inspect
import math
import sys
from importlib.metadata import version

import torch
from torch import Tensor, nn

from prehab_lib.batches import mode
from prehab_lib.inputs import check_positive, check_whole
from prehab_lib.save import models
from prehab_lib.scale.skeleton import causal_config
from prehab_lib.tasks import cache
from prehab_lib.tasks.descent import Best, descend
from prehab_lib.tasks.language import LanguageTask
from prehab_lib.tasks.perplexity import language_loss, perplexity

SMALL = "small"  # the checkpoint name of the model that is built here
PATIENCE = 3  # validations in a row without a better one, before training stops
# Modules whose code decides the trained weights, beside transformers and torch.
DECIDING = (
    "tasks.small_llama",
    "tasks.descent",
    "tasks.language",
    "tasks.perplexity",
    "tasks.windows",
)


def small_llama(
    vocabulary: int,
    depth: int = 3,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 0,
    *,
    positions: int = 256,
    inner: int | None = None,
    tied: bool = False,
) -> nn.Module:
    """transformers' `LlamaForCausalLM` with grouped-query attention, random weights from `seed`.

    kv_heads: heads of keys and values, a divisor of `heads`.  inner: width of the gated layers,
    None for 5/2 of `width`. tied: one matrix embeds the tokens and reads them out.  Token 0 is BOS
    and 1 EOS, as in `bpe.train_bpe`.
    """
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner or 5 * width // 2,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        initializer_range=width**-0.5,
        tie_word_embeddings=tied,
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
    weight_decay: float = 0.05,
    clip: float = 1.0,
    validate_every: int = 100,
) -> list[dict]:
    """Train every parameter by AdamW on random windows, in place, and keep the weights of the best
    validation.

    The learning rate rises over `warmup` steps and falls as a cosine.  Every `validate_every`
    steps, and at the end, the perplexity of the task's validation windows is taken; after three in
    a row without a better one training stops. Returns a row for each of them: step, loss (mean of
    the steps since the last), validation.
    Raises ValueError for a bad number, or a loss that is no longer finite.
    """
    check_whole(0, steps=steps, warmup=warmup)
    check_whole(1, validate_every=validate_every)
    check_positive(lr=lr, clip=clip)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / (warmup + 1)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))

    settings = dict(
        lr=lr, rate=rate, weight_decay=weight_decay, betas=(0.9, 0.95), clip=clip, what="training"
    )
    best, rows, losses = Best(model.parameters()), [], []
    with mode(model, training=True):
        for step, loss in enumerate(
            descend(model, task.train(seed, steps), language_loss, **settings), 1
        ):
            losses.append(loss)
            if step % validate_every == 0 or step == steps:
                value = perplexity(model, task.chosen_on)
                rows.append({"step": step, "loss": sum(losses) / len(losses), "validation": value})
                losses = []
                best.offer(value)
                if best.since >= PATIENCE:
                    break
    best.restore()
    model.zero_grad(set_to_none=True)
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

    checkpoint: "small" trains `small_llama(**small)` by `pretrain(**recipe)`, once: it is cached,
    keyed by token ids, settings, seed, device and code.  Else the hub name or folder of any causal
    language model of transformers, used as it is.  dtype: of a given model's weights, None as they
    are stored.
    Raises as `models.text_model` does, and ValueError for a model that is compressed already or no
    causal one, has no embedding for a token of the task's text, or fewer positions than its window.
    """
    if checkpoint != SMALL:
        model = _given(checkpoint, dtype)
        task.check(model)
        return model.to(device).eval(), "given"
    options = {"positions": max(256, task.window)} | (small or {})

    def make() -> nn.Module:
        return small_llama(len(task.tokenizer), seed=seed, **options).to(device)

    key = dict(
        task=task.name,
        batch=task.batch,
        window=task.window,
        bos=task.bos,
        vocabulary=len(task.tokenizer),
    )
    key |= dict(training=_digest(task.training), chosen_on=_digest(task.chosen_on.ids))
    key |= dict(checkpoint=SMALL, small=options, recipe=recipe, device=str(device), seed=seed)
    key |= dict(transformers=version("transformers"))
    key |= dict(code=[inspect.getsource(sys.modules[f"prehab_lib.{name}"]) for name in DECIDING])
    trained, cached = cache.trained(
        key, make, lambda model: pretrain(model, task, seed=seed, **recipe)
    )
    task.check(trained)
    return trained.to(device), "cached" if cached else "trained"


def _given(checkpoint: str, dtype) -> nn.Module:
    causal_config(checkpoint)
    return models.text_model(
        checkpoint, "AutoModelForCausalLM", **({} if dtype is None else {"dtype": dtype})
    )


def _digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest()[:16]
