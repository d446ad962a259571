"""What a language model says of text: its loss in nats, and the perplexity of Table IV."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from prehab_lib.batches import IGNORED, device_of, mean_over_tokens, mode, move, positions
from prehab_lib.progress import progress
from prehab_lib.tasks.windows import Windows


def token_losses(model: nn.Module, batch: Mapping) -> tuple[Tensor, int]:
    """Sum of the losses in nats of tokens t + 1 given 0..t, in float32 or better, and their number.

    batch: input_ids (B, T) int64; attention_mask (B, T), 1 where a token is real; labels (B, T),
    -100 where a token is not scored.  Without labels all real tokens are scored, but the first of
    each row.  Padding may stand on either side: positions are counted from the first real token,
    where forward takes them.  Raises ValueError for logits that are not finite.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    targets = batch.get("labels", ids)[:, 1:]
    options = {}
    if mask is not None:
        targets = targets.masked_fill((mask[:, 1:] == 0) | (mask[:, :-1] == 0), IGNORED)
        options = {"attention_mask": mask} | positions(model, batch)
    if hasattr(getattr(model, "config", None), "use_cache"):
        options["use_cache"] = False  # keys and values of all layers would be kept for nobody
    out = model(input_ids=ids, **options)
    logits = getattr(out, "logits", out)[:, :-1]  # (B, T-1, vocabulary)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if not torch.isfinite(logits.sum(dtype=dtype)):  # one pass, and no copy
        fit = "do its weights fit its precision?"
        raise ValueError(f"the model's logits are NaN or infinite: {fit}")
    flat = logits.to(dtype).flatten(0, 1), targets.flatten()
    total = nn.functional.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum")
    return total, int((targets != IGNORED).sum())


@mean_over_tokens
def language_loss(model: nn.Module, batch: Mapping) -> Tensor:
    """Mean cross-entropy in nats of a batch's tokens, Table IV's loss; ValueError for no token."""
    total, count = token_losses(model, move(batch, device_of(model)))
    if not count:
        raise ValueError("no token of the batch is scored: are the answers cut off at max_length?")
    return total / count


@torch.no_grad()
def perplexity(model: nn.Module, windows: Windows | Iterable[Mapping], batch: int = 8) -> float:
    """exp of the mean cross-entropy over all scored tokens, in eval mode, summed in float64.

    windows: or batches for `token_losses`.  Raises as that and `check_fits` do, or for no token.
    """
    total, count = 0.0, 0
    batches = windows.batches(batch) if isinstance(windows, Windows) else windows
    with mode(model, training=False):
        for inputs in progress(batches, "perplexity"):
            ids = inputs["input_ids"]
            check_fits(model, int(ids.max()), window=ids.shape[1])
            nats, tokens = token_losses(model, move(inputs, device_of(model)))
            total, count = total + float(nats.double()), count + tokens
    if not count:
        raise ValueError("there is nothing to evaluate: no token is scored")
    mean = total / count
    return math.exp(mean) if mean < 700 else math.inf


def check_fits(model: nn.Module, highest: int, **length: int) -> None:
    """Raises ValueError where the model lacks the token `highest`, or positions for a length."""
    if hasattr(model, "get_input_embeddings"):
        size = model.get_input_embeddings().num_embeddings
        if highest >= size:
            outside = f"token {highest} is outside the model's vocabulary of {size}"
            raise ValueError(f"{outside}: the tokenizer belongs to another model")
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", math.inf)
    for name, value in length.items():
        if value > positions:
            few = f"is longer than the {positions} positions of the model"
            raise ValueError(f"{name} = {value} {few}: make it smaller")
