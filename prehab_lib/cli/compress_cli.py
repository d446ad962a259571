"""`python -m prehab_lib compress MODEL --data FILE --out DIR`: statistics, optional prehab,
surgery, scores and saving.

Works on any causal language model of transformers, by hub name or folder, with any text.
Everything that can be wrong with the arguments is found before the weights are loaded; DIR appears
when it is complete, or not at all.
"""

import math
import os
import sys
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from prehab_lib.cli import compress_input

HELD_OUT = 0.1  # the last tenth of the text is scored, the rest calibrates
# Of prehab: recomputed activations, half the roots, and those one at a time on the device.
LESS_MEMORY = {"gradient_checkpointing": True, "rank_dtype": "float32", "roots_on": "cpu"}
DTYPES = ("auto", "float32", "bfloat16", "float16")
WIDTH = 10  # of the first column of what is printed


def add_to(commands) -> None:
    """The subcommand's arguments.  Imports nothing heavy."""
    command = commands.add_parser(
        "compress", help="compress a causal language model with a text of yours"
    )
    command.add_argument(
        "model", metavar="MODEL", help="hub name or folder of a transformers causal language model"
    )
    command.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="text (UTF-8), or Parquet with a column 'text'",
    )
    command.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="new folder, or one with a saved model to replace",
    )
    command.add_argument(
        "--removed", type=float, default=0.4, help="fraction of the layers' weights to remove (0.4)"
    )
    command.add_argument(
        "--method", default="svd_llm", help="a name in prehab_lib.methods (svd_llm)"
    )
    command.add_argument("--window", type=int, default=2048, help="tokens of a window (2048)")
    command.add_argument("--samples", type=int, default=256, help="calibration windows (256)")
    command.add_argument("--batch", type=int, default=1, help="windows at a time (1)")
    command.add_argument(
        "--scored", type=int, default=64, help="held-out windows to score, at most (64)"
    )
    prehab = command.add_argument_group("prehab, left out where --steps is 0")
    prehab.add_argument("--steps", type=int, default=0, help="steps of prehab before surgery (0)")
    prehab.add_argument(
        "--lam", type=float, default=1e-3, help="weight of the surrogate; 0 is the control (1e-3)"
    )
    prehab.add_argument(
        "--surrogate", default="stable_rank", help="a name in prehab_lib.surrogates (stable_rank)"
    )
    over = 'over the layers: "sum" is Eq. (2), "mean" the authors\' release (sum)'
    prehab.add_argument("--reduction", default="sum", choices=("sum", "mean"), help=over)
    prehab.add_argument("--lr", type=float, default=1e-5, help="learning rate (1e-5)")
    prehab.add_argument("--less-memory", action="store_true", help="slower, for large models")
    command.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, mps (auto: the first GPU there is)"
    )
    command.add_argument(
        "--dtype", default="auto", choices=DTYPES, help="of the weights (auto: the checkpoint's)"
    )
    command.add_argument(
        "--merged",
        action="store_true",
        help="save dense weights, for tools without low-rank layers",
    )
    command.add_argument(
        "--license", help="the hub's identifier of the base model's licence, for the model card"
    )
    command.add_argument("--seed", type=int, default=0, help="of the calibration windows (0)")
    command.set_defaults(act=run)


def run(arguments) -> int:
    """Exit code 0, or 130 on Ctrl-C; bad input raises as the other commands do."""
    compress_input.check(arguments)
    try:
        with _plain_output():
            _compress(arguments)
    except KeyboardInterrupt:
        print(f"prehab_lib: stopped; {arguments.out} is as it was", file=sys.stderr)
        return 130
    return 0


def _compress(a) -> None:
    config, device = compress_input.dense_config(a.model), compress_input.device_named(a.device)
    compress_input.check_settings(config, a)
    from prehab_lib.save.storage import save
    from prehab_lib.tasks.bpe import tokenizer_of
    from prehab_lib.tasks.perplexity import perplexity
    from prehab_lib.tasks.windows import Draws, cut, token_stream

    texts, tokenizer = compress_input.read_texts(a.data), tokenizer_of(a.model)
    stream = token_stream(texts, tokenizer)
    if len(stream) < 2 * a.window:
        raise ValueError(
            f"{a.data} has {len(stream)} tokens, fewer than two windows of {a.window}, one to calibrate and one to score: "
            "give more text, or a smaller --window"
        )
    compress_input.check_vocabulary(config, int(stream.max()))
    spared = max(a.window, int(HELD_OUT * len(stream)))
    held_out = cut(stream[-spared:], a.window, a.scored, a.data)
    calibration = Draws(stream[:-spared], a.window, a.batch, a.seed, math.ceil(a.samples / a.batch))
    _estimate(config, device, a)
    model = _open(device, a)
    _say("text", f"{a.data}: {len(stream)} tokens, {len(held_out)} windows of {a.window} held out")
    before = perplexity(model, held_out, a.batch)
    _say("before", f"perplexity {before:.4g} on the held-out windows")
    report = _cut(model, calibration, a)
    after = perplexity(model, held_out, a.batch)
    _say("after", f"perplexity {after:.4g} on the held-out windows")
    text = Path(a.data).name
    about = {
        "base_model": Path(a.model).resolve().name if os.path.isdir(a.model) else a.model,
        "method": a.method,
        "removed": a.removed,
        "achieved": report.achieved,
        "license": a.license,
        "calibration": f"{a.batch * len(calibration)} windows of {a.window} tokens of {text}, drawn with seed {a.seed}",
        "prehab": _prehab(a) if a.steps else "none",
        "perplexity": {"before": before, "after": after},
        "perplexity on": f"{len(held_out)} windows of {a.window} tokens of the last part of {text}, which did not calibrate",
    }
    folder = save(model, a.out, tokenizer=tokenizer, merged=a.merged, **about)
    size = sum(file.stat().st_size for file in folder.iterdir())
    _say("saved", f"{a.out}: {size / 1e6:.4g} MB; its README.md says how to open it")


def _estimate(config, device: str, a) -> None:
    """Say what it will take; raises ValueError where the device has not the memory.  Known for
    rulers of activations only.
    """
    from prehab_lib.methods import method_named
    from prehab_lib.scale.preflight import estimate

    chosen = method_named(a.method)
    if chosen.allocation == "learned" or not chosen.needs <= {"gram", "influence", "mean_abs"}:
        return
    dtype = compress_input.dtype_of(config, a.dtype)
    sizes = dict(
        batch=a.batch,
        window=a.window,
        samples=a.samples,
        steps=a.steps,
        removed=a.removed,
        dtype=dtype,
    )
    sizes |= dict(surrogate=a.surrogate) | _arithmetic(a) | (LESS_MEMORY if a.less_memory else {})
    found = estimate(config, **sizes, device=device)
    _say(
        "estimate",
        f"{found.peak:.3g} GiB and {max(found.minutes, 0.1):.1f} minutes on {device}, beside the scores",
    )
    found.check(
        remedy="add --less-memory or --dtype bfloat16, take a smaller model, or go block by block with prehab_lib.scale.stream"
    )


def _open(device: str, a):
    """The model on its device, in eval mode."""
    from prehab_lib.save.models import text_model

    model = text_model(a.model, "AutoModelForCausalLM", dtype=a.dtype)
    parameters, dtype = model.num_parameters(), str(model.dtype).removeprefix("torch.")
    _say("model", f"{a.model}: {parameters / 1e6:.4g} M parameters, {dtype} on {device}")
    return model.to(device).eval()


def _cut(model, calibration, a):
    """Statistics, prehab where it is asked for, surgery; the surgeon's report."""
    from prehab_lib.methods import method_named
    from prehab_lib.prehab import prehab
    from prehab_lib.scale.lazy import decompose_lazily
    from prehab_lib.stats import collect
    from prehab_lib.surgery import compress
    from prehab_lib.tasks.perplexity import language_loss

    chosen = method_named(a.method)
    needs = chosen.needs
    if a.steps:
        with _step("prehab") as said:
            stats = collect(model, calibration)
            options = dict(
                surrogate=a.surrogate, lam=a.lam, reduction=a.reduction, steps=a.steps, lr=a.lr
            )
            options |= _arithmetic(a) | (LESS_MEMORY if a.less_memory else {})
            history = prehab(model, language_loss, calibration, stats, log_every=None, **options)
            losses = history.column("task_loss")
            said.append(f"{_prehab(a)}: loss {losses[0]:.4g} to {losses[-1]:.4g}")
    with _step("statistics") as said:
        stats = collect(model, calibration, needs=needs, task_loss=language_loss)
        said.append(f"{', '.join(sorted(needs)) or 'none needed'} of {len(stats)} layers")
    with _step("surgery") as said:
        cuts = decompose_lazily(model, stats, chosen.weighting)
        data = dict(decompositions=cuts, task_loss=language_loss, batches=calibration)
        report = compress(model, chosen, a.removed, stats, **data)
        said.append(str(report))
    return report


def _arithmetic(a) -> dict:
    """The fast one where there is one."""
    from prehab_lib.fast import FAST

    return {"arithmetic": "fast" if a.surrogate in FAST else "exact"}


def _prehab(a) -> str:
    return f"{a.surrogate}, {a.reduction} over the layers, λ = {a.lam:g}, {a.steps} steps, learning rate {a.lr:g}"


def _say(what: str, text: str) -> None:
    print(f"{what:<{WIDTH}} {text}", flush=True)


@contextmanager
def _step(what: str):
    """Say what was appended and how long it took, then each warning of the library as a note."""
    said, started = [], time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield said
    _say(what, f"{said[0]}, {time.perf_counter() - started:.1f} s")
    for warning in caught:
        if warning.category is UserWarning:
            _say("note", str(warning.message))


@contextmanager
def _plain_output():
    """Progress bars of transformers only where somebody watches; ours look themselves."""
    from transformers.utils import logging

    hide = not sys.stderr.isatty() and logging.is_progress_bar_enabled()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()
