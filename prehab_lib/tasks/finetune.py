"""The base model of a sentence task: an encoder, or a small BERT, fine-tuned once, then cached."""

import math

import torch
from torch import nn

from prehab_lib.batches import mode, seeded
from prehab_lib.inputs import check_options, check_positive, check_whole
from prehab_lib.save.hub import optional
from prehab_lib.save.models import text_model
from prehab_lib.scale.skeleton import config_of
from prehab_lib.tasks import training
from prehab_lib.tasks.perplexity import check_fits
from prehab_lib.tasks.sentences import SentenceTask, sentence_loss

SPREAD = 1.4  # size of the starting weights in 1/√width; at 1, truncation costs next to nothing


def small_bert(
    vocabulary: int, outputs: int, depth=2, width=64, heads=4, seed=0, positions=64
) -> nn.Module:
    """A random `BertForSequenceClassification` from `seed`; outputs: classes (1: a regression).

    width: even, a multiple of heads.  Places start as sinusoids, and in half of the heads the keys
    as copies of the queries: else the tasks on pairs stay at chance for hundreds of steps.
    """
    transformers = optional("transformers")
    sizes = dict(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads)
    sizes |= dict(vocab_size=vocabulary, max_position_embeddings=positions, num_labels=outputs)
    sizes |= dict(intermediate_size=4 * width, initializer_range=SPREAD * width**-0.5)
    sizes |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
        half = width // heads * (heads // 2)
        for layer in model.bert.encoder.layer:
            query, key = layer.attention.self.query.weight, layer.attention.self.key.weight
            key[:half] = query[:half].mul_(1.2)  # sharp enough to tell words apart
        place = model.bert.embeddings.position_embeddings.weight  # (positions, width)
        frequencies = 10000 ** (-torch.arange(0, width, 2) / width)
        angle = torch.arange(positions)[:, None] * frequencies  # (positions, width/2)
        place.copy_(torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1) * width**-0.5)
    return model


def fine_tune(
    model: nn.Module, task: SentenceTask, *, seed, lr, epochs=3, steps=None, warmup=0.0, beta2=0.999
) -> list[float]:
    """Train every parameter by AdamW on the task's own loss, in place; the loss of each step.

    epochs: passes over the training rows, unless `steps` says how many batches.  The learning rate
    rises linearly over the first `warmup` of the steps, then falls to 0 as a cosine.  The defaults
    are the paper's.  Raises ValueError for a bad number, or as `training.descend` does.
    """
    check_positive(lr=lr, epochs=epochs)
    steps = math.ceil(epochs * task.epoch) if steps is None else steps
    check_whole(0, steps=steps)
    for name, part in {"warmup": warmup, "beta2": beta2}.items():
        if not 0 <= part < 1:
            raise ValueError(f"{name} = {part!r}: give a number from 0 to below 1")
    rising = warmup * steps

    def rate(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 + 0.5 * math.cos(math.pi * (step - rising) / max(steps - rising, 1))

    schedule = training.adamw(model, rate, lr=lr, weight_decay=0.01, betas=(0.9, beta2))
    descent = (task.train(seed, steps), sentence_loss, schedule, "fine-tuning")
    with mode(model, training=True), seeded(model, seed):
        return list(training.descend(model, *descent, clip=1.0))


def base_model(
    task: SentenceTask, checkpoint: str, *, seed: int, device="cpu", small=None, **recipe
) -> tuple[nn.Module, str]:
    """The model of a task before prehab, as `training.base_model` gives it; or "given".

    checkpoint: "small" builds `small_bert(**small)`; else a hub name or folder (`classifier`).  All
    but a ready classifier is fine-tuned by `fine_tune(**recipe)`, once.  Raises as these do.
    """
    small, ready = small or {}, False
    if checkpoint == training.SMALL:
        check_options("small", small, small_bert)
        model = small_bert(len(task.tokenizer), task.outputs, seed=seed, **small)
    else:
        model, ready = classifier(checkpoint, task, seed)
    check_fits(model, -1, max_length=task.max_length)
    if ready:
        return model.to(device).eval(), "given"
    fed = dict(batch=task.batch, max_length=task.max_length, tokenizer=_described(task.tokenizer))
    fed |= dict(texts=task.training.texts, labels=task.training.labels)
    return training.base_model(model, fine_tune, task, device, seed, recipe, **fed)


def classifier(checkpoint: str, task: SentenceTask, seed: int = 0) -> tuple[nn.Module, bool]:
    """A transformers sequence classifier for the task, and whether the checkpoint brings its head.

    A new head is random, from `seed`.  Raises as `skeleton.config_of` and `models.text_model` do,
    and ValueError for a head that is not the task's.
    """
    logging = optional("transformers.utils.logging")
    logging.set_verbosity_error()  # its note on a new head is the second value here
    logging.disable_progress_bar()
    config = config_of(checkpoint)
    kinds = [str(kind) for kind in config.architectures or ()]
    ready = any(kind.endswith("ForSequenceClassification") for kind in kinds)
    if ready:
        _check_head(config, checkpoint, task)
    else:
        config.num_labels = task.outputs
        if task.labels:
            config.id2label = dict(enumerate(task.labels))
            config.label2id = {name: i for i, name in enumerate(task.labels)}
    # Half precision cannot be trained.
    options = dict(config=config, dtype=torch.float32, new_head=not ready)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return text_model(checkpoint, "AutoModelForSequenceClassification", **options), ready


def _described(tokenizer) -> str:
    """All that a tokenizer does, but how it was called last."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr(sorted(tokenizer.get_vocab().items()))
    backend.no_truncation()
    backend.no_padding()
    return backend.to_str()


def _check_head(config, checkpoint: str, task: SentenceTask) -> None:
    names = [str(config.id2label[i]).lower() for i in range(config.num_labels)]
    unnamed = not task.labels or names == [f"label_{i}" for i in range(len(names))]
    if len(names) != task.outputs or not (unnamed or names == [*task.labels]):
        wanted = ", ".join(task.labels) or "one real number"
        kind = f"checkpoint {checkpoint!r} is a classifier of {', '.join(names)}"
        remedy = "give an encoder, or a model fine-tuned on this task"
        raise ValueError(f"{kind}, and task {task.name!r} needs {wanted}, in this order: {remedy}")
