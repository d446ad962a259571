"""What the runs of a profile take, counted before anything is loaded: `plan paper` prints it.

PyTorch counts forward passes, on models without memory; all else is counted as the notebooks do it,
but for sections of a few passes.  Hours are a bound from below: reading, copies to and from the
host, roots, gradients of single samples and surrogates that fall back come on top.
"""

from collections import Counter
from dataclasses import replace
from functools import cache
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import pandas
import torch
import transformers
import yaml
from torch.utils.flop_counter import FlopCounterMode

from prehab_lib.fast.polar import POLYNOMIALS
from prehab_lib.methods import METHODS
from prehab_lib.report.timing import side_by_side
from prehab_lib.rivals.asvd import CANDIDATES
from prehab_lib.save.models import image_model
from prehab_lib.scale.preflight import GIB, Plan, available_gib, estimate, sizes_of
from prehab_lib.scale.skeleton import config_of

KNOWN = yaml.safe_load(Path(__file__).with_name("forecast.yaml").read_text(encoding="utf-8"))
COUNTS = ["passes", "backward", "steps", "factorised"]
WHOLE, LESS, GB = 141, 24, GIB / 1e9  # GB of the GPU of the profile, of a common one; a GiB in GB


def measured(device: str = "cuda", size: int = 8192) -> dict[str, float]:
    """Operations a second, by the names in `KNOWN["rates"]`."""
    A, half = torch.randn(size, size, device=device), size // 2
    low, S = A.bfloat16(), (A + A.T)[:half, :half].double()
    ways = dict(low=lambda: low @ low, single=lambda: A @ A, solved=lambda: torch.linalg.eigh(S))
    work = dict(low=2 * size**3, single=2 * size**3, solved=9 * half**3)
    seconds = side_by_side(ways, repeats=3, device=device)["median"]
    return {kind: work[kind] / seconds[kind] for kind in work}


@cache
def sized(notebook: str, name: str, dtype: str) -> SimpleNamespace:
    """`sizes_of` a run's model without weights; raises as `config_of` and `image_model` do."""
    with torch.device("meta"):
        if notebook == "03_vit":
            return sizes_of(image_model(name, pretrained=False))
        known, causal = KNOWN["configs"].get(name), notebook == "11_one_arm"
        config = getattr(transformers, known)() if known else config_of(name)
        auto = "AutoModelForCausalLM" if causal else "AutoModelForSequenceClassification"
        model = getattr(transformers, auto).from_config(config, dtype=getattr(torch, dtype))
        return sizes_of(model, config.vocab_size * causal)


@cache
def forward(model: torch.nn.Module, tokens: int) -> int:
    """Operations of a pass with one row."""
    patches = getattr(model, "patch_embed", None)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        ids = torch.zeros(1, tokens, dtype=torch.long)
        model(torch.zeros(1, 3, *patches.img_size) if patches else ids)
    return counter.get_total_flops()


def passes(s, count, rows, tokens, at=(0.0,), free=None, steps=0, again=0) -> Counter:
    """Passes of batches at each fraction removed.  free: weights that are trained; backward is
    twice forward, less the gradients of the others.  again: 1 where checkpointing goes forward."""
    gone, kind = sum(at) * s.compressed, "low" if s.dtype.itemsize == 2 else "single"
    work = count * rows * (len(at) * forward(s.model, tokens) - 2 * tokens * gone)
    found = Counter(passes=count * len(at))
    if free is not None:
        frozen = len(at) * (s.dense - free) - gone
        work = (3 + again) * work - 2 * count * rows * tokens * frozen
        found += Counter(backward=count * len(at), steps=steps * len(at))
    return found + Counter({kind: work})


def statistics(s, count, rows, tokens, needs, iterations=10) -> Counter:
    """`collect`: a pass for the inputs, and passes with gradients for what needs them."""
    again = bool(needs & {"fisher_in", "grad"}) + 2 * iterations * ("kron_in" in needs)
    work = passes(s, again * count, rows, tokens, free=s.compressed)
    grams = 2 * count * rows * tokens * sum(n * n for n in s.inputs) * ("gram" in needs)
    return work + passes(s, count, rows, tokens) + Counter(single=grams)


def factorised(s, times: int, pair: int = 2) -> Counter:
    """9 k³ + 2 m n k a layer: `scale.lean` says where from.  pair: 0 leaves the second out."""
    work = sum(9 * min(shape) ** 3 + pair * min(shape) ** 2 * max(shape) for shape in s.shapes)
    return Counter(factorised=times * len(s.shapes), solved=times * work)


def surrogate(s, name: str, steps: int, held: int) -> Counter:
    """What it adds to the steps.  held: of a fast one; 0: exact, an SVD a layer and step."""
    if not held:
        return factorised(s, steps, pair=0)
    work, d = sum(2 * m * n * n for m, n in s.shapes), len(POLYNOMIALS)  # W G
    if name != "stable_rank":  # W L, its polar factor by products, and that times Lᵀ
        polar = ((4 * d + 4) * k * k * q + 2 * d * k**3 for k, q in map(sorted, s.shapes))
        work = 2 * work + sum(polar)
    return Counter(single=work * ceil(steps / held))


def one_arm(P, s):
    """The stages of notebook 11: name, work, GiB on the GPU, GiB of the host."""
    arm, here, many = KNOWN["arms"][P.arm], (P.batch, P.window), P.arm == "untouched"
    windows = [min(P.scored or text, text // P.window) for text in KNOWN["texts"]]
    scored = sum(ceil(count / 4) for count in windows), 4, P.window
    home = P.large.get("roots_on", "device")  # of Grams and factors too, in this notebook
    plan = Plan(*here, steps=P.steps, dtype=s.dtype, refresh=P.held, grams_on=home, **P.large)
    plain, uncut = (estimate(s, some, "cuda") for some in (plan, replace(plan, batch=4)))
    base, uncut = plain.totals["statistics"], uncut.totals["scoring"]
    whole, weights = (s.dtype.itemsize * count / GIB for count in (s.parameters, s.compressed))
    grams = 8 * sum(n * n for n in s.inputs) / GIB
    factors = 4 * sum(min(shape) * sum(shape) for shape in s.shapes) / GIB
    waiting = grams + factors if home == "cpu" else 0
    yield "statistics", statistics(s, P.calibration, *here, {"gram"}), base, max(whole, waiting)
    if arm:
        again = P.large.get("gradient_checkpointing", 0)
        work = passes(s, P.steps, *here, free=s.compressed, steps=P.steps, again=again)
        work += surrogate(s, arm, P.steps, P.held) if arm != "none" else Counter()
        yield "prehab", work, plain.totals["prehab"], plain.host
    kept = weights + 8 * sum(n * n for _, n in s.shapes) / s.blocks / GIB  # and a block's Grams
    yield "kept, scored uncut", passes(s, *scored), uncut, 2 * kept
    cuts, had = [*P.methods, *(P.baselines if many else [])], set()
    at = sorted({*P.removed, *(P.scale if many else [])})
    found = max(base, whole + factors) if waiting else base + factors
    cut = (whole if waiting else found) + uncut + 2 * (1 - at[0]) * weights  # a copy; factors twice
    steps, rows = 2 * P.lora["steps"], P.rehab_on.get("batch", P.batch)
    tokens = KNOWN["alpaca"] if "name" in P.rehab_on else P.window
    for ruler in dict.fromkeys(METHODS[method].weighting for method in cuts):
        methods = [method for method in cuts if METHODS[method].weighting == ruler]
        needs = {"gram"}.union(*(METHODS[method].needs for method in methods)) - had
        had |= needs
        work = statistics(s, P.calibration, *here, needs) + factorised(s, 1)
        yield f"measured, factorised: {ruler}", work, found, waiting
        for method in methods:
            if METHODS[method].allocation == "sensitivity":
                tried = len(CANDIDATES) * len(s.shapes) * P.searched
                yield f"search: {method}", passes(s, tried, *here), cut, waiting
            work = passes(s, max(1, P.calibration // 2), *here, at=[P.judged])
            yield f"cut, scored: {method}", work + passes(s, *scored, at), cut, waiting
            asked = P.arm in P.repaired["arms"] and method in P.repaired["methods"]
            for r in P.repaired["at"] if asked and steps else []:
                count = steps * P.lora.get("accumulate", 1)
                work = passes(s, count, rows, tokens, [r], free=0, steps=steps)
                lora = dict(batch=rows, window=tokens, lora=P.lora["rank"], removed=r)
                gpu = cut + estimate(s, replace(plan, **lora), "cuda").totals["rehab"]
                yield f"LoRA: {method} at {r}", work + passes(s, *scored, [r]), gpu, waiting


def refuse(P, device: str) -> None:
    """Raises ValueError where a stage of notebook 11 needs more memory than is free now."""
    s = sized("11_one_arm", P.checkpoint, P.base.get("dtype", "float32"))
    P = P if P.arm in KNOWN["arms"] else P.model_copy(update={"arm": "few-stable"})  # like it
    for stage, _, gpu, host in one_arm(P, s):
        for place, gib in ((device, gpu), ("cpu", host)):
            if gib > (free := available_gib(place)):
                needs = f"{stage} needs about {gib:.1f} GiB of {place} memory"
                raise ValueError(f"{needs}, and {free:.1f} are free: see `plan paper`")


def small(P, s):
    """The same of notebooks 03 and 04, all seeds together; memory is the peak of the run."""
    vit, seeds = hasattr(P, "lams"), len(P.seeds)
    train, *tests = KNOWN["rows"][P.dataset if vit else P.task]
    here, epoch = (P.batch, 197 if vit else P.max_length), ceil(train / P.batch)
    terms = [P.surrogate] * (len({*P.lams, P.lam}) if vit else 1) + [*P.others]
    arms, steps = 1 + len(terms), seeds * (P.steps or epoch)
    held = getattr(P, "refresh", 8) * (P.arithmetic == "fast")  # 03 has 8 written in
    squares = sum(m * m + n * n for m, n in s.shapes) + 2 * sum(n * n for n in s.inputs)
    models, plan = 4 * s.parameters / GIB, Plan(P.batch, here[1], steps=1, dtype=torch.float32)
    peak = estimate(s, plan, "cuda").peak + seeds * ((1 + arms) * models + 8 * squares / GIB)
    work = passes(s, arms * steps, *here, free=s.compressed, steps=arms * steps)
    tuned = 0 if vit else 3 * seeds * epoch  # of the base
    work += passes(s, tuned, *here, free=s.dense, steps=tuned)
    yield "trained", sum((surrogate(s, term, steps, held) for term in terms), work), peak, models
    needs = {"gram"}.union(*(METHODS[method].needs for method in P.methods))
    work = statistics(s, seeds * P.calibration, *here, needs, P.kronecker)
    work += statistics(s, seeds * arms * P.calibration, *here, {"gram"})
    cuts, scored = arms + len(P.methods), (seeds * sum(ceil(n / 64) for n in tests), 64, here[1])
    at = [0.0] * (1 + arms + arms * (not vit)) + P.removed * cuts + P.curve
    work += factorised(s, seeds * (cuts + 1)) + passes(s, *scored, at)
    yield "measured, cut, scored", work, peak, models
    if vit:  # the untouched model, the control and prehab
        count, at = 2 * seeds * P.lora["steps"], 3 * P.removed
        work = passes(s, count, *here, at, free=0, steps=count) + passes(s, *scored, at)
        yield "LoRA", work, peak, models


def table(runs) -> str:
    """A row a stage, the sums of each run and of all, the rates, and what fits where."""
    cuda, less, rows, notes = torch.cuda.is_available(), {}, [], []
    rates, said = measured() if cuda else KNOWN["rates"], "measured here" if cuda else KNOWN["said"]
    counted = {"03_vit": small, "04_bert_glue": small, "11_one_arm": one_arm}
    for run in [run for run in runs if run.notebook.stem in counted]:
        P, stem = SimpleNamespace(**run.params), run.notebook.stem
        name = run.params.get("checkpoint") or P.model
        try:
            s = sized(stem, name, run.params.get("base", {}).get("dtype", "float32"))
            stages = [*counted[stem](P, s)]
        except (LookupError, ValueError, OSError, ImportError) as problem:
            notes.append(f"{run.name}: no forecast, model, data or arm are not known: {problem}")
            continue
        for stage, work, *memory in stages:
            hours = sum(work[kind] / rates[kind] for kind in rates) / 3600
            counts = (work[name] for name in COUNTS)
            rows.append([run.name, stage, *counts, hours, *(GB * gib for gib in memory)])
        totals = {"all seeds together": stages[0][2]}
        if stem == "11_one_arm":
            plan = Plan(steps=1, lora=8, streamed=True, dtype=s.dtype, window=P.window, **P.large)
            totals = estimate(s, plan, "cuda").totals
        less |= {f"{phase} of {name}": GB * gib for phase, gib in totals.items()}
    if not rows:
        return "\n".join(["no forecast: none of these runs is counted", *notes])
    how = dict.fromkeys([*COUNTS, "hours"], "sum") | dict.fromkeys(["GPU GB", "host GB"], "max")
    frame = pandas.DataFrame(rows, columns=["run", "stage", *how])
    sums = frame.groupby("run", sort=False).agg(how)
    sums.loc["all"] = sums.agg(how)
    frame[""] = ["!" if gb > WHOLE else "" for gb in frame["GPU GB"]]
    for run, some in frame[frame[""] == "!"].groupby("run", sort=False):
        stages = ", ".join(f"{one.stage} {one['GPU GB']:.0f}" for _, one in some.iterrows())
        notes.append(f"! {run} does not fit on one GPU of {WHOLE} GB: {stages}")
    for fits, where in ((True, f"one GPU of {LESS} GB holds"), (False, "several (FSDP2) hold")):
        parts = [f"{part} {gb:.0f}" for part, gb in less.items() if (gb <= LESS) == fits]
        notes.append(f"streamed and with checkpointing {where}, in GB: {', '.join(parts) or '-'}")
    speeds, show = ", ".join(f"{kind} {rates[kind]:.1e}" for kind in rates), "{:.2f}".format
    shown = [frame.to_string(index=False, float_format=show), sums.to_string(float_format=show)]
    return "\n".join([*shown, f"operations a second, {said}: {speeds}", *notes])
