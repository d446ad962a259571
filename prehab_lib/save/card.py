"""The model card of a compressed model: what it is, where it comes from, how it is opened."""

import os
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from torch import nn

from prehab_lib import __version__
from prehab_lib.factors import LowRankLinear
from prehab_lib.save.packaged import PACKAGED

TASKS = {"AutoModelForCausalLM": "text-generation", "AutoModel": "feature-extraction"}
TASKS |= {"AutoModelForSequenceClassification": "text-classification"}
NAMED = ("base_model", "method", "removed", "achieved", "calibration", "commit", "license")
IMPORT = "import prehab_lib.save  # makes the model type known to transformers\n"
WARNING = "\n`prehab_lib.surgery.load` opens it too. Any other class of transformers draws the\n"
WARNING += "missing matrices at random and reports them as MISSING.\n"
AUTO = 'from transformers import {0}\nmodel = {0}.from_pretrained("this/folder")'
LOAD = 'from prehab_lib.surgery import load\n\nmodel = load("this/folder")'
LORA = """
LoRA of peft goes on the two factors of each layer: `target_modules=["U", "V"]` or "all-linear".
The name of the layer itself, such as "q_proj", is that of no linear layer any more.
"""
MERGED = "The two factors of each layer are multiplied out again, so this copy saves no memory.\n"


def text(model: nn.Module, auto: str | None, merged: bool, about: dict) -> ModelCard:
    """The card, whose `save(path)` writes README.md with the hub's front matter.

    model: with its low-rank layers, also for a merged export. auto: the class of transformers that
    opens it, None for `surgery.load` alone.
    about: NAMED, and what else is to be listed as it is; base_model is a hub name, folder or
    packaged model, which brings its own licence; license is the hub's identifier, removed and
    achieved are fractions.
    """
    base = about.get("base_model") or getattr(getattr(model, "config", None), "_name_or_path", "")
    base, source = str(base or ""), "whoever made this copy"
    if known := PACKAGED.get(base):
        base, about = known.hub, {"weights": known.weights} | about
        if not about.get("license"):
            about, source = about | {"license": known.license}, f"the package {known.package}"
    on_hub = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base) and not os.path.isdir(base)
    license = about.get("license")
    front = ModelCardData(tags=["low-rank", "svd", "compression"])
    front.library_name = "transformers" if auto else "prehab_lib"
    front.pipeline_tag, front.license = TASKS.get(auto), license
    front.base_model = base if on_hub else None
    origin = f"`{base if on_hub else Path(base).name}`" if base else "a model"
    method = f" by `{about['method']}`" if about.get("method") else ""
    removed, achieved = about.get("removed"), about.get("achieved")
    reached = "." if achieved is None else f", {achieved:.1%} achieved."
    asked = f"Removed of those layers' weights: {removed or 0:.0%} asked{reached}\n"
    given = f"`{license}`, as told by {source}. " if license else ""
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    others = [name for name in about if name not in NAMED and about[name] is not None]
    rows = "".join(f"| {name} | {_cell(about[name])} |\n" for name in others)
    return ModelCard(f"""\
---
{front.to_yaml()}
---

# {Path(base).name or type(model).__name__}, compressed{" and merged" if merged else ""}

The linear layers of {origin}, cut down to low rank{method} with `prehab_lib`.
{"" if removed is None else asked}{MERGED if merged else ""}
## Open it

```python
{LOAD if auto is None else AUTO.format(auto) if merged else IMPORT + AUTO.format(auto)}
```
{"" if merged or not auto else WARNING}{"" if merged else LORA}
## Ranks

{_ranks(model)}

## How it was made

| | |
|---|---|
| calibration | {_cell(about.get("calibration") or "not told")} |
| versions | prehab_lib {__version__}, {libraries} |
| commit of prehab_lib | {_cell(about.get("commit") or "not told")} |
| written | {datetime.now(UTC):%Y-%m-%d} |
{rows}
## Licence

{given}These weights are derived from the base model's, so its licence
and terms apply to them as well.
""")


def _ranks(model: nn.Module) -> str:
    """One row for all layers that share the last part of their name and their shape."""
    rows: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            kind = re.sub(r"^.*\d+\.", "", name)
            row = f"| `{kind}` | {module.out_features} × {module.in_features} |"
            rows.setdefault(row, []).append(module.rank)
    lines = ["| layer | shape | layers | rank |", "|---|---|---|---|"]
    for row, ranks in rows.items():
        span = " to ".join(dict.fromkeys([str(min(ranks)), str(max(ranks))]))
        lines.append(f"{row} {len(ranks)} | {span} |")
    return "\n".join(lines) if rows else "None: every layer is dense."


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
