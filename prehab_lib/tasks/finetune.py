"""From a pretrained encoder, or a small one built here, to the base model of a task: fine-tuned
once, then cached.
"""

import hashlib
import inspect
import json
import math
import os
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from prehab_lib.batches import mode, seeded
from prehab_lib.inputs import check_options, check_positive, check_whole
from prehab_lib.save import rewrite
from prehab_lib.save.hub import explained
from prehab_lib.tasks import cache, descent, rows, sentences, small_text
from prehab_lib.tasks.descent import descend
from prehab_lib.tasks.sentences import SentenceTask, sentence_loss

SMALL = "small"  # the checkpoint name of the model that is built here


def fine_tune(
    model: nn.Module,
    task: SentenceTask,
    *,
    seed: int,
    lr: float,
    epochs: float = 3,
    steps: int | None = None,
    warmup: float = 0.0,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    beta2: float = 0.999,
) -> list[float]:
    """Train every parameter by AdamW on the task's own loss, in place; the loss of each step.

    epochs: passes over the training rows, unless `steps` says how many batches.  The learning rate
    rises linearly over the first `warmup` of the steps, then falls to 0 as a cosine.  clip: largest
    norm of the gradient.
    beta2: AdamW's memory of squared gradients, near 1 for long training.
    The defaults are the paper's (3 epochs, cosine, `glue.GLUE[...].lr`) with the release's weight
    decay.
    Raises ValueError for a bad number, or a loss that is no longer finite.
    """
    check_positive(lr=lr, epochs=epochs, clip=clip)
    steps = math.ceil(epochs * task.epoch) if steps is None else steps
    check_whole(0, steps=steps)
    if not 0 <= warmup < 1:
        raise ValueError(
            f"warmup = {warmup!r}: give the part of the steps in which the learning rate rises, 0 to below 1"
        )
    if not 0 < beta2 < 1:
        raise ValueError(f"beta2 = {beta2!r}: give a number strictly between 0 and 1")
    rising = warmup * steps

    def rate(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(steps - rising, 1))

    settings = dict(
        lr=lr,
        rate=rate,
        weight_decay=weight_decay,
        betas=(0.9, beta2),
        clip=clip,
        what="fine-tuning",
    )
    with mode(model, training=True), seeded(model, seed):
        return list(descend(model, task.train(seed, steps), sentence_loss, **settings))


def base_model(
    task: SentenceTask,
    checkpoint: str,
    *,
    seed: int,
    device: str | torch.device = "cpu",
    small: dict | None = None,
    **recipe,
) -> tuple[nn.Module, str]:
    """The model of a task before prehab, in eval mode on `device`, and where it is from: "given",
    "cached" or "trained".

    checkpoint: "small" builds `small_text.small_bert(**small)`; else a hub name or folder.  If that
    holds a classifier of the task's size it is used as it is; an encoder gets a new one and is
    fine-tuned.  recipe: arguments of `fine_tune`. What is fine-tuned here is cached, keyed by data,
    tokenizer, checkpoint, recipe, seed, device and code. Raises ConnectionError, PermissionError,
    FileNotFoundError or ValueError, as `models.text_model` and `classifier` do.
    """
    if checkpoint == SMALL:
        origin = dict(small or {})
        check_options("small", origin, small_text.small_bert)

        def make() -> nn.Module:
            model = small_text.small_bert(len(task.tokenizer), task.outputs, seed=seed, **origin)
            _check_positions(model, task)
            return model.to(device)
    else:
        model, ready = classifier(checkpoint, task, seed)
        _check_positions(model, task)
        if ready:
            return model.to(device).eval(), "given"
        origin = _stamp(checkpoint, model)

        def make() -> nn.Module:
            return model.to(device)

    key = dict(
        task=task.name,
        data=task.training.checksum,
        batch=task.batch,
        max_length=task.max_length,
        seed=seed,
    )
    key |= dict(
        checkpoint=checkpoint,
        origin=origin,
        recipe=recipe,
        device=str(device),
        tokenizer=_vocabulary(task.tokenizer),
    )
    key |= dict(
        transformers=version("transformers"),
        code=[
            inspect.getsource(part)
            for part in (fine_tune, classifier, descent, sentences, rows, small_text, rewrite)
        ],
    )
    trained, cached = cache.trained(
        key, make, lambda network: fine_tune(network, task, seed=seed, **recipe)
    )
    return trained.to(device), "cached" if cached else "trained"


def classifier(checkpoint: str, task: SentenceTask, seed: int = 0) -> tuple[nn.Module, bool]:
    """A transformers sequence classifier for the task, and whether the checkpoint brings its head:
    it then is fine-tuned.

    checkpoint: hub name or folder, safetensors only, no remote code.  A new head is random, from
    `seed`.
    Raises as `models.text_model` does, and ValueError for a head of another size, of other classes,
    or with them in another order.
    """
    import transformers

    if checkpoint.startswith((".", "/", "~")) and not os.path.isdir(checkpoint):
        raise FileNotFoundError(f"checkpoint = {checkpoint!r} is no folder: check the path")
    options = dict(
        use_safetensors=True, trust_remote_code=False, dtype=torch.float32
    )  # half precision cannot be trained
    remedy = dict(
        what=f"the model {checkpoint!r}", remedy="give the folder of a local copy instead"
    )
    with explained(**remedy), _quiet():
        config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        _check_head(config, checkpoint, task)
    else:
        config.num_labels = task.outputs
        if task.labels:
            config.id2label = dict(enumerate(task.labels))
            config.label2id = {name: i for i, name in enumerate(task.labels)}
    with explained(**remedy), _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loader = transformers.AutoModelForSequenceClassification
        model, report = loader.from_pretrained(
            checkpoint, config=config, output_loading_info=True, **options
        )
    rewrite.to_linear(model)
    return model, not report["missing_keys"]


def _check_positions(model: nn.Module, task: SentenceTask) -> None:
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and task.max_length > positions:
        raise ValueError(
            f"max_length = {task.max_length} is longer than the {positions} positions of the model: lower it"
        )


def _check_head(config, checkpoint: str, task: SentenceTask) -> None:
    if config.num_labels != task.outputs:
        raise ValueError(
            f"checkpoint {checkpoint!r} has a head of {config.num_labels} outputs and task {task.name!r} needs {task.outputs}: "
            "give an encoder, or a model fine-tuned on this task"
        )
    named = [str(config.id2label[i]).lower() for i in range(config.num_labels)]
    if not task.labels or named == [f"label_{i}" for i in range(len(named))]:
        return  # a regression, or names that say nothing: the order is taken on trust
    if set(named) != set(task.labels):
        raise ValueError(
            f"checkpoint {checkpoint!r} is a classifier of another task: its classes are {', '.join(named)} and task "
            f"{task.name!r} has {', '.join(task.labels)}; give an encoder, or a model fine-tuned on this task"
        )
    if named != list(task.labels):
        raise ValueError(
            f"checkpoint {checkpoint!r} numbers its classes {', '.join(named)} and task {task.name!r} {', '.join(task.labels)}: "
            "reorder the rows of its classifier"
        )


class _quiet:
    """transformers' notes on new heads and its progress bars go to stderr; here both are said in
    the result.
    """

    def __enter__(self):
        from transformers.utils import logging

        self.logging, self.level, self.bar = (
            logging,
            logging.get_verbosity(),
            logging.is_progress_bar_enabled(),
        )
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *problem):
        self.logging.set_verbosity(self.level)
        if self.bar:
            self.logging.enable_progress_bar()


def _stamp(checkpoint: str, model: nn.Module) -> list:
    """What tells one checkpoint from another of the same name: the hub's commit, or name, size and
    time of each file.
    """
    if not os.path.isdir(checkpoint):
        return [getattr(model.config, "_commit_hash", None)]
    files = sorted(file for file in Path(checkpoint).iterdir() if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _vocabulary(tokenizer) -> str:
    """Digest of all a tokenizer does: its vocabulary, normalizer and special tokens, but not how it
    was called last.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    lasting = {
        key: value
        for key, value in described.items()
        if backend is None or key not in ("truncation", "padding")
    }
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]
