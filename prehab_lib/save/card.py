"""The model card of a compressed model: what it is, where it comes from, how it is opened."""

import os
import re
from pathlib import Path

from torch import nn

from prehab_lib import __version__
from prehab_lib.factors import LowRankLinear
from prehab_lib.report.records import birth_certificate

TASKS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModel": "feature-extraction",
}
TOLD = ("base_model", "method", "removed", "achieved", "calibration", "license")


def text(model: nn.Module, auto: str, merged: bool, about: dict) -> str:
    """README.md with the front matter of the hub.

    model: with its low-rank layers, also for a merged export.  auto: the Auto class that opens it.
    about: base_model (hub name or folder; the configuration's `_name_or_path` where it is not
    told), method, removed and achieved (fractions), calibration (a sentence), license (the hub's
    identifier); whatever else is told is listed as it is.
    """
    base = str(about.get("base_model") or getattr(model.config, "_name_or_path", "") or "")
    told = {key: value for key, value in about.items() if key not in TOLD and value is not None}
    sections = [
        _front_matter(base, auto, about.get("license")),
        f"# {Path(base).name or type(model).__name__}, {'compressed and merged' if merged else 'compressed'}",
        _what(base, merged, about),
        _opening(auto, merged),
        "## Ranks\n\n" + _ranks(model),
        "## How it was made\n\n" + _table(_making(about) | told),
        "## Licence\n\n" + _licence(base, about.get("license")),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(base: str, auto: str, license: str | None) -> str:
    lines = ["---", "library_name: transformers", f"pipeline_tag: {TASKS[auto]}"]
    lines += [f"base_model: {base}"] if _on_hub(base) else []
    lines += [f"license: {license}"] if license else []
    return "\n".join(
        [*lines, "tags:", *(f"- {tag}" for tag in ("low-rank", "svd", "compression")), "---"]
    )


def _on_hub(base: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base)) and not os.path.isdir(base)


def _what(base: str, merged: bool, about: dict) -> str:
    name = f"`{base if _on_hub(base) else Path(base).name}`" if base else "a model"
    how = f" by `{about['method']}`" if about.get("method") else ""
    sentence = (
        f"The linear layers of {name}, cut down to low rank{how} with `prehab_lib` {__version__}."
    )
    if about.get("removed") is not None:
        achieved = "" if about.get("achieved") is None else f", {about['achieved']:.1%} achieved"
        sentence += f" Removed of those layers' weights: {about['removed']:.0%} asked{achieved}."
    if merged:
        sentence += (
            " The two factors of each layer are multiplied out again, so this copy saves no memory."
        )
    return sentence


def _opening(auto: str, merged: bool) -> str:
    lines = [] if merged else ["import prehab_lib  # makes the model type known to transformers"]
    lines += [
        f"from transformers import {auto}",
        f'model = {auto}.from_pretrained("path/to/this/folder")',
    ]
    heading = "## Open it\n\n```python\n" + "\n".join(lines) + "\n```"
    if merged:
        return heading
    return heading + (
        "\n\n`prehab_lib.surgery.load` opens it too. Any other class of transformers draws the missing matrices at random "
        "and reports them as MISSING."
    )


def _ranks(model: nn.Module) -> str:
    """One row for all layers that share the last part of their name and their shape."""
    rows: dict[tuple, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            kind = (re.sub(r"^.*\d+\.", "", name), module.out_features, module.in_features)
            rows.setdefault(kind, []).append(module.rank)
    lines = ["| layer | shape | layers | rank |", "|---|---|---|---|"]
    for (name, m, n), ranks in rows.items():
        span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
        lines.append(f"| `{name}` | {m} × {n} | {len(ranks)} | {span} |")
    return "\n".join(lines) if rows else "None: every layer is dense."


def _making(about: dict) -> dict[str, object]:
    born = birth_certificate()
    versions = ", ".join(f"{name} {version}" for name, version in born["versions"].items())
    known = {"calibration": about.get("calibration") or "not told", "versions": versions}
    return known | {
        "commit of prehab_lib": born["commit"] or "not known",
        "written": born["started"],
    }


def _table(rows: dict[str, object]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else str(value).replace("|", "\\|").replace("\n", " ")
    )


def _licence(base: str, license: str | None) -> str:
    told = f"`{license}`, as told by whoever made this copy. " if license else ""
    return (
        told
        + "These weights are derived from the base model's, so its licence and terms apply to them as well."
    )
