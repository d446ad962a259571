"""What all passes over calibration data share: batches, hooks on modules, and errors."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from prehab_lib.batches import device_of, move, refuse_meta
from prehab_lib.progress import progress

HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def calibration(model: nn.Module, batches: Iterable, what: str) -> Iterator:
    """The batches on the device of the model.  Raises ValueError where there is none."""
    refuse_meta(model)
    empty, device = True, device_of(model)
    for batch in progress(batches, what):
        empty = False
        yield move(batch, device)
    if empty:
        raise ValueError("there are no batches to calibrate with: pass at least one")


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module],
    before: Callable | None = None,
    after: Callable | None = None,
    recorded: bool = False,
) -> Iterator[None]:
    """Inside, before(name, x) hears what a module reads and after(name, x, out) what it returns.

    x: the first tensor among its arguments, or None.  A tensor that `after` returns replaces out.
    recorded: raises ValueError where autograd does not see what a module does.
    """
    with ExitStack() as hooks:
        for name, module in modules.items():

            def enter(module, args: tuple, kwargs: dict, name: str = name) -> None:
                before(name, _first_tensor(args, kwargs))

            def leave(module, args: tuple, kwargs: dict, out, name: str = name):
                if recorded and not torch.is_grad_enabled():
                    remedy = "turn gradient checkpointing off for these statistics"
                    raise ValueError(f"layer {name!r} runs without gradients: {remedy}")
                return after(name, _first_tensor(args, kwargs), out)

            if before is not None:
                hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            if after is not None:
                hooks.callback(module.register_forward_hook(leave, with_kwargs=True).remove)
        yield


def _first_tensor(args: tuple, kwargs: dict) -> Tensor | None:
    return next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)


def check_finite(kind: str, name: str, x: Tensor) -> None:
    """Raises ValueError where activations or gradients (`kind`) of a layer are not finite."""
    if not torch.isfinite(x).all():
        problem = f"NaN or infinite {kind} reach layer {name!r}"
        raise ValueError(f"{problem}: look at the data, the weights, the loss and the precision")


def check_reached(layers: Iterable, reached: Collection, problem: str, remedy: str) -> None:
    """Raises ValueError "problem layer 'name': remedy" for the first layer that is not reached."""
    silent = [name for name in layers if name not in reached]
    if silent:
        raise ValueError(f"{problem} layer {silent[0]!r} (of {len(silent)}): {remedy}")


def refuse_parametrised(modules: Mapping[str, nn.Module]) -> None:
    """Raises ValueError naming the first layer whose weight is made of others and has no own."""
    for name, module in modules.items():
        if "weight" not in dict(module.named_parameters(recurse=False)):
            remedy = "parametrize.remove_parametrizations, remove_weight_norm or prune.remove"
            raise ValueError(f"layer {name!r} is parametrised, it trains no weight: {remedy} first")


def refuse_hooks(modules: Mapping[str, nn.Module], what: str) -> None:
    """Raises ValueError naming the first layer with hooks, or a forward of one's own, of a user."""
    for name, module in modules.items():
        state = vars(module)
        if "forward" in state or any(state[kind] for kind in state if kind.endswith(HOOKS)):
            remedy = "remove them first"
            if "_hf_hook" in state:
                remedy = "accelerate.hooks.remove_hook_from_module(model, recurse=True) does it"
            raise ValueError(f"layer {name!r} has hooks, which {what} drops: {remedy}")
