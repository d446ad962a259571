"""Two models are one function: a forward pass of both on a small input, module by module."""

import inspect
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, forward, mode, move, seeded
from prehab_lib.save.hub import one_line
from prehab_lib.statistics.hooks import hooked

TOKENS, SIDE = 8, 64
REMEDY = "set model.prehab_recipe (see prehab_lib.save.models.build) before saving"
# Relative distance that round-off alone explains, for 32 bits or more, and for fewer.  Loose: where
# two factors were multiplied out, or the models lie on different devices.
EXACT, LOOSE = (1e-5, 0.02), (1e-3, 0.2)


def check_same(model: nn.Module, other: nn.Module, example=None, loose: bool = False) -> None:
    """Raises ValueError where `other`, what would be reopened, computes something else.

    example: a batch; None where `small_inputs` finds one.  `other` may hold the very tensors of
    `model`: the comparison then takes no memory.  loose: compare the final outputs alone.
    """
    kind, tried = type(model).__name__, "none is known"
    for batch in small_inputs(model) if example is None else [example]:
        try:
            ours = _said(model, batch)
            break
        except Exception as problem:  # whatever a model raises that is not fed like this
            tried = one_line(problem)
    else:
        what = f"{kind} could not be run on a small input ({tried})"
        raise ValueError(f"{what}: give one batch that it takes as example=...")
    try:
        theirs = _said(other, batch)
    except Exception as problem:
        what = f"{kind} would not run when it is opened again"
        raise ValueError(f"{what} ({one_line(problem)}): {REMEDY}") from problem
    for name in [""] if loose else ours:
        heard = theirs.get(name, [])
        far = max(map(_distance, ours[name], heard), default=0.0)
        far = far if len(heard) == len(ours[name]) else float("inf")
        coarse = any(tensor.element_size() < 4 for tensor in ours[name])
        if far > (LOOSE if loose else EXACT)[coarse]:
            where = f"{name!r} is" if name else "the output is"
            what = f"{kind} would not reopen as it is: on a small input {where} off by {far:.2g}"
            raise ValueError(f"{what}; {REMEDY}")


def small_inputs(model: nn.Module) -> Iterator[dict | tuple]:
    """Batches to try, the richest first: the model decides which it takes."""
    config, random = getattr(model, "config", None), torch.Generator().manual_seed(0)
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()] or [torch.float32]
    parts = {}
    if not hasattr(config, "to_dict"):  # of timm
        channels = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)] or [3]
        size = getattr(getattr(model, "patch_embed", None), "img_size", None) or (SIDE, SIDE)
        usual = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, *size))
        for height, width in (size, usual[1:]):
            image = torch.rand(1, channels[0], height, width, generator=random).to(floats[0])
            yield image, image  # as images and labels; a forward pass takes the first
        return
    text, vision = config.get_text_config(), getattr(config, "vision_config", config)
    if getattr(text, "vocab_size", None):
        positions = getattr(text, "max_position_embeddings", None) or 2 * TOKENS
        count = max(1, min(TOKENS, positions // 2))
        ids = (3 + 7 * torch.arange(count)[None]) % text.vocab_size
        parts = {"input_ids": ids, "decoder_input_ids": ids}
    size = getattr(vision, "image_size", None)
    if size:
        sides = [size] * 2 if isinstance(size, int) else size
        shape = (1, getattr(vision, "num_channels", 3), *sides)
        parts["pixel_values"] = torch.rand(shape, generator=random).to(floats[0])
    known = [name for name in inspect.signature(model.forward).parameters if name in parts]
    for names in [known, *([name] for name in known)]:
        yield {name: parts[name] for name in names}


@torch.no_grad()
def _said(model: nn.Module, batch) -> dict[str, list[Tensor]]:
    """The outputs of every module to a batch by its name, those of the model itself by ""."""
    said: dict[str, list[Tensor]] = {}

    def listen(name: str, x: Tensor | None, out) -> None:
        said.setdefault(name, []).extend(_tensors(out))

    listening = hooked(dict(model.named_modules()), after=listen)
    with listening, mode(model, training=False), seeded(model, 0):
        forward(model, move(batch, device_of(model)))
    return said


def _tensors(out) -> list[Tensor]:
    """Every floating tensor in what a module returned."""
    if isinstance(out, Tensor):
        return [out] if out.is_floating_point() else []
    values = out.values() if isinstance(out, Mapping) else out
    if not isinstance(out, Mapping | tuple | list):  # not the caches, which belong to no function
        return []
    return [tensor for value in values for tensor in _tensors(value)]


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ / ‖ours‖; infinite for other shapes, 0 for equal ones, also of NaN."""
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    if ours.shape != theirs.shape:
        return float("inf")
    if torch.allclose(ours, theirs, rtol=0, atol=0, equal_nan=True):
        return 0.0
    far = float((ours - theirs).norm() / ours.norm().clamp_min(torch.finfo(ours.dtype).tiny))
    return far if far == far else float("inf")
