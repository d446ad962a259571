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
    front = ModelCardData(tags=["low-rank", "svd", "compression"])
    front.library_name = "transformers" if auto else "prehab_lib"
    front.pipeline_tag, front.license = TASKS.get(auto), about.get("license")
    front.base_model = base if on_hub else None
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    facts = {"calibration": about.get("calibration") or "not told"}
    facts["versions"] = f"prehab_lib {__version__}, {libraries}"
    facts["commit of prehab_lib"] = about.get("commit") or "not told"
    facts["written"] = f"{datetime.now(UTC):%Y-%m-%d}"
    facts |= {name: about[name] for name in about if name not in NAMED and about[name] is not None}
    filled = {"name": Path(base).name or type(model).__name__, "source": source, "about": about}
    filled["origin"] = f"`{base if on_hub else Path(base).name}`" if base else "a model"
    filled["facts"] = {name: _cell(value) for name, value in facts.items()}
    filled |= {"auto": auto, "merged": merged, "ranks": _ranks(model)}
    return ModelCard.from_template(front, str(Path(__file__).with_name("card.md")), **filled)


def _ranks(model: nn.Module) -> dict[tuple[str, str], list[int]]:
    """(last part of their name, their shape) -> ranks of the layers that share both."""
    ranks: dict[tuple[str, str], list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            kind = re.sub(r"^.*\d+\.", "", name), f"{module.out_features} × {module.in_features}"
            ranks.setdefault(kind, []).append(module.rank)
    return ranks


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(inner)}" for name, inner in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
