"""`python -m prehab_lib compress`: statistics, optional prehab, surgery, scores and saving.

Works on any causal language model of transformers with any text.  Whatever can be wrong with the
arguments is found before the weights are loaded; the folder appears when it is complete.
"""

import json
import math
import os
import shutil
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging

from prehab_lib import stats, surgery
from prehab_lib.allocation import given
from prehab_lib.budget import check_removed
from prehab_lib.fast import FAST, Fast
from prehab_lib.inputs import check_choice, check_positive, check_seed, check_whole
from prehab_lib.methods import Method, method_named
from prehab_lib.prehab import Memory, Training, check_lam, prehab
from prehab_lib.progress import say
from prehab_lib.save import models
from prehab_lib.save.hub import explained
from prehab_lib.save.storage import check_target, save
from prehab_lib.scale import preflight, stream
from prehab_lib.scale.skeleton import causal_config
from prehab_lib.surrogates import SURROGATES
from prehab_lib.tasks.files import JSON_LINES, read_texts
from prehab_lib.tasks.perplexity import language_loss, perplexity
from prehab_lib.tasks.tokenizers import tokenizer_of
from prehab_lib.tasks.windows import cut, drawn_windows, token_stream

HELD_OUT = 0.1  # the last tenth of the text is scored, the rest calibrates
DENSE = "dense, for transformers alone"  # how it will be opened, said before the work
LOW_RANK = 'low rank, for transformers after "import prehab_lib.save"; --merged: without'
# Of prehab: recomputed activations, half the roots, and those one at a time on the device.
LESS_MEMORY = {"gradient_checkpointing": True, "rank_dtype": "float32", "roots_on": "cpu"}


def run(arguments) -> int:
    """Exit code 0, or 130 on Ctrl-C; bad input raises as the other commands do."""
    if not sys.stderr.isatty():  # transformers' bars only where somebody watches, as ours
        logging.disable_progress_bar()
    try:
        _compress(arguments)
        return 0
    except KeyboardInterrupt:
        print(f"prehab_lib: stopped; {arguments.out} is as it was", file=sys.stderr)
        return 130


def _compress(a) -> None:
    _check_arguments(a)
    config, device = causal_config(a.model), _device(a.device)
    dtype = getattr(torch, a.dtype) if a.dtype != "auto" else config.dtype or torch.float32
    texts, tokenizer = read_texts(a.data, "--data"), tokenizer_of(a.model)
    tokens = token_stream(texts, tokenizer, a.chat)
    _check_settings(config, dtype, tokens, a)
    spared = max(a.window, int(HELD_OUT * len(tokens)))
    held_out = cut(tokens[-spared:], a.window, a.scored, a.data)
    count = math.ceil(a.samples / a.batch)
    calibration = drawn_windows(tokens[:-spared], a.window, a.batch, a.seed, count)
    _estimate(config, dtype, device, a)
    _say("folder", DENSE if a.merged else LOW_RANK)

    model = models.text_model(a.model, "AutoModelForCausalLM", dtype=a.dtype).to(device).eval()
    millions, kind = model.num_parameters() / 1e6, str(model.dtype).removeprefix("torch.")
    _say("model", f"{a.model}: {millions:.4g} M parameters, {kind} on {device}")
    _say("text", f"{a.data}: {len(tokens)} tokens, {len(held_out)} windows of {a.window} held out")
    scores = {"before": perplexity(model, held_out, a.batch)}
    _say("before", f"perplexity {scores['before']:.4g} on the held-out windows")
    report = _cut(model, calibration, device, a)
    scores["after"] = perplexity(model.to(device), held_out, a.batch)
    _say("after", f"perplexity {scores['after']:.4g} on the held-out windows")

    text, windows = _plain(Path(a.data).name), f"windows of {a.window} tokens of"
    drawn, last = a.batch * len(calibration), f"{windows} the last part of {text}"
    about = {name: getattr(a, name) for name in ("method", "removed", "license")}
    base = os.path.basename(os.path.realpath(a.model)) if os.path.exists(a.model) else a.model
    about["base_model"] = _plain(base)
    about["calibration"] = f"{drawn} {windows} {text}, drawn with seed {a.seed}"
    about["chats"] = "each text one turn of a user" if a.chat else None
    about["prehab"] = _described(a) if a.steps else "none"
    about |= {"achieved": report.achieved, "perplexity": scores}
    about["options of the method"] = dict(a.method_option) or None
    about["share of the whole model removed"] = f"{report.achieved_of_model:.1%}"
    about["left out"] = report.beside()
    about["perplexity on"] = f"{len(held_out)} {last}, which did not calibrate"
    options = dict(tokenizer=tokenizer, merged=a.merged, ranks=report.ranks)
    folder = save(model, a.out, **options, **about)
    size = sum(file.stat().st_size for file in folder.iterdir())
    _say("saved", f"{a.out}: {size / 1e6:.4g} MB; its README.md says how to open it")


def _estimate(config, dtype: torch.dtype, device: str, a) -> None:
    """Say what it will take; raises ValueError where device or disk have not the room."""
    method = _method(a)
    options = {"rank_dtype": "float32" if a.surrogate in FAST else "float64"}
    options |= LESS_MEMORY if a.less_memory else {}
    options |= {n: getattr(a, n) for n in ("batch", "window", "samples", "steps")}
    options |= {"removed": a.removed or 0.0, "streamed": a.blockwise}
    needed = preflight.estimate(config, preflight.Plan(dtype=dtype, **options), device)
    if a.ranks:
        given(a.ranks, needed.layers)
    stored = needed.parameters - (0 if a.merged else options["removed"] * needed.compressed)
    wanted, free = stored * dtype.itemsize / 1e9, shutil.disk_usage(_above(a.out)).free / 1e9
    if wanted > free:
        there = f"about {wanted:.3g} GB, and {free:.3g} GB are free there"
        raise ValueError(f"--out {a.out} will take {there}: free some, or name another folder")
    if method.allocation == "learned" or not method.needs <= {"gram", "influence", "mean_abs"}:
        return  # memory is known for rulers of activations only
    _say("estimate", f"{needed.peak:.3g} GiB on {device} at most")
    needed.check("add --less-memory or --dtype bfloat16, or --blockwise without prehab")


def _cut(model, calibration, device: str, a) -> surgery.Report:
    """Prehab by the Gram ruler where it is asked for, statistics, surgery; or both by blocks."""
    method = _method(a)
    if a.steps:
        options = {name: getattr(a, name) for name in ("reduction", "steps", "lr")}
        options |= {"lam": a.lam} if a.dose is None else {"dose": a.dose}
        options["surrogate"] = Fast(a.surrogate) if a.surrogate in FAST else a.surrogate
        options["training"] = Training(log_every=None)
        options["memory"] = Memory(**LESS_MEMORY if a.less_memory else {})
        with _step("prehab") as said:
            found = stats.collect(model, calibration)
            history = prehab(model, language_loss, calibration, found, **options)
            losses = history.column("task_loss")
            del found  # before the next statistics are collected
            a.lam, a.dose = history.rows[0]["lam"], history.rows[0]["dose"]  # for the card
            said.append(f"{_described(a)}: loss {losses[0]:.4g} to {losses[-1]:.4g}")
    if a.blockwise:
        with _step("surgery") as said:
            model.to("cpu")  # where blocks wait for their turn
            report = stream.compress(model, method, a.removed, calibration, device=device)
            said.append(str(report))
        return report
    with _step("statistics") as said:
        found = stats.collect(model, calibration, needs=method.needs, task_loss=language_loss)
        said.append(f"{', '.join(sorted(method.needs)) or 'none needed'} of {len(found)} layers")
    with _step("surgery") as said:
        data = {"task_loss": language_loss, "batches": calibration}
        report = surgery.compress(model, method, a.removed, found, **data)
        said.append(str(report))
    return report


def _described(a) -> str:
    what = f"{a.surrogate}, {a.reduction} over the layers, λ = {a.lam:.4g} (dose {a.dose:.3g})"
    return f"{what}, {a.steps} steps, learning rate {a.lr:g}"


def _check_arguments(a) -> None:
    """What the arguments alone can tell, before anything is read."""
    if a.ranks:
        with explained(f"--ranks {a.ranks}", 'give JSON as {"model.layers.0.mlp.up_proj": 12}'):
            a.removed, a.ranks = None, dict(json.loads(Path(a.ranks).read_text("utf-8-sig")))
            if not any(a.ranks.values()):
                raise ValueError("it gives no layer a rank")
    else:
        check_removed(a.removed)
    if a.blockwise:
        stream.check_method(_method(a))
        if a.steps:
            raise ValueError("--blockwise holds one block at a time, and prehab all: leave out one")
    if a.chat and not a.data.lower().endswith((".parquet", *JSON_LINES)):
        raise ValueError("--chat wants to know where a text ends: give JSON lines or Parquet")
    surgery.check_arguments(_method(a), {"task_loss": language_loss, "batches": []})
    check_seed(a.seed)
    check_whole(2, window=a.window)
    check_whole(1, samples=a.samples, batch=a.batch, scored=a.scored)
    check_whole(0, steps=a.steps)
    check_choice("surrogate", a.surrogate, SURROGATES)
    check_positive(lr=a.lr)
    check_lam(a.lam)
    check_lam(a.dose or 0.0, "dose")
    out, above = Path(os.path.realpath(a.out)), _above(a.out)
    if os.path.lexists(out) and not out.is_dir():
        raise ValueError(f"--out {a.out} is a file: name a new folder")
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ValueError(f"--out {a.out} cannot be made: {above} is no folder one may write to")
    source = Path(os.path.realpath(a.model))
    if source.is_dir() and (out == source or source in out.parents or out in source.parents):
        raise ValueError(f"--out {a.out} and the model {a.model} lie in each other: name another")
    check_target(a.out)


def _above(out: str) -> Path:
    """What is there already of the folders around `out`, the nearest."""
    return next(at for at in Path(os.path.realpath(out)).parents if os.path.lexists(at))


def _method(a) -> Method:
    """The method by its name, with the ranks or options that were given."""
    method, options = method_named(a.method), dict(a.method_option)
    if a.ranks:
        return replace(method, allocation=a.ranks, options=options)
    return replace(method, options={**method.options, **options})


def _plain(name: str) -> str:
    """A file's name as text that can be written: names may be bytes of no encoding."""
    return name.encode("utf-8", "backslashreplace").decode()


def _check_settings(config, dtype: torch.dtype, tokens, a) -> None:
    """What the arguments ask and the model's configuration or the text does not allow."""
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    if a.window > positions:
        longer = f"window = {a.window} is longer than the {positions} positions"
        raise ValueError(f"{longer} of the model: make it smaller")
    if a.steps and dtype == torch.float16:
        raise ValueError("prehab cannot train in float16: add --dtype bfloat16 or float32")
    known, highest = getattr(config, "vocab_size", None) or math.inf, int(tokens.max())
    if highest >= known:
        outside = f"token {highest} is outside the model's vocabulary of {known}"
        raise ValueError(f"{outside}: the tokenizer belongs to another model")


def _device(name: str) -> str:
    if name == "auto":
        gpus = {"cuda": torch.cuda, "mps": torch.backends.mps}
        return next((kind for kind, gpu in gpus.items() if gpu.is_available()), "cpu")
    try:
        return str(torch.empty(0, device=name).device)
    except (RuntimeError, AssertionError) as problem:  # asserts where it was built without one
        raise ValueError(f"--device {name}: this torch has no such device") from problem


def _say(what: str, text: str) -> None:
    say(f"{what:10} {text}")


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
