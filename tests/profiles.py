"""A finished profile on disk, small enough to read: what the tests of the audit and its page judge and spoil."""

import json
from pathlib import Path

ABOUT = {
    "profile": "laptop",
    "versions": {"python": "3.11.7", "torch": "2.15.0", "timm": "1.0.31", "transformers": "5.23.0"},
    "commit": "0123456789abcdef",
    "model": "small ViT",
    "data": "digit pairs",
}
TOP1 = dict(metric="top1_percent", higher_is_better=True, seconds=1.0, paper_table="II")
PLACES = [(0.4, 0), (0.4, 1), (0.6, 0), (0.6, 1)]  # fraction removed, seed
SCORES = {"svd": (50, 51, 20, 21), "svd_llm": (70, 71, 40, 41), "control": (72, 72, 45, 45), "prehab": (73, 71, 47, 44)}
BEATS = {"Table II: SVD-LLM beats SVD": ("svd_llm", "svd"), "Table II: prehab beats SVD-LLM": ("prehab", "svd_llm")}
BEATS["prehab: nuclear λ=0.1 beats its control"] = ("prehab", "control")


def vit_records() -> list[dict]:
    records = []
    for arm, values in SCORES.items():
        names = dict(method=arm, arm=arm, control=arm == "control", lora=False)
        for (removed, seed), value in zip(PLACES, values, strict=True):
            place = dict(removed=removed, achieved=removed, value=float(value), seed=seed)
            records.append(names | place | TOP1)
    return records


def vit_claims() -> list[dict]:
    lines = []
    for sentence, (one, other) in BEATS.items():
        each = [ours > theirs for ours, theirs in zip(SCORES[one], SCORES[other], strict=True)]
        lines.append(line(sentence, each))
    return lines


def line(sentence: str, each: list[bool], **other) -> dict:
    counted = dict(sentence=sentence, each=each, holds=sum(each), cases=len(each))
    return counted | dict(of="ratios × seeds", paper="", ours="tiny", profile="laptop") | other


def enter(home: Path, monkeypatch) -> Path:
    """A repository of one notebook with its finished run, as the working directory."""
    (home / "notebooks").mkdir()
    (home / "notebooks" / "03_vit.ipynb").write_text('{"cells": []}')
    monkeypatch.chdir(home)
    write_run(home, "03_vit", vit_records(), vit_claims())
    return home


def write_run(home: Path, name: str, records=None, claims=(), about=ABOUT, profile="laptop", folder="laptop") -> Path:
    """A finished run in HOME/runs/FOLDER/NAME. The notebook is what its name has before a dot."""
    place = home / "runs" / folder / name
    place.mkdir(parents=True, exist_ok=True)
    notebook = name.partition(".")[0]
    (place / "run.json").write_text(json.dumps({"profile": profile, "notebook": notebook, "files": [], "params": {}}))
    if records is not None:
        result = {"about": about, "protocol": "on held-out pairs", "records": records}
        (place / "result.json").write_text(json.dumps(result))
    (place / "claims.jsonl").write_text("".join(json.dumps(one) + "\n" for one in claims))
    return place
