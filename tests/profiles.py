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
SEEDS = range(5)
# Top-1 at 60 % removed, a score a seed. The curve falls by one point a per cent, so points are ratio points.
SCORES = {
    "svd": (20.0, 21.0, 20.5, 19.5, 21.5),
    "svd_llm": (40.0, 41.0, 40.5, 39.5, 41.5),
    "control": (44.0, 44.5, 45.0, 43.0, 46.0),
    "prehab": (44.2, 44.4, 45.1, 43.1, 45.7),
    "fwsvd": (30.0, 12.0, 25.0, 14.0, 24.0),
}
TAILS = {"control": 0.10, "prehab": 0.07}


def curves(seeds=SEEDS, dataset="") -> list[dict]:
    """SVD-LLM's score from 100 uncut to 10 at 90 % removed."""
    points = {"removed": [0.0, 0.3, 0.9], "merits": [100.0, 70.0, 10.0]}
    return [{"dataset": dataset, "seed": seed} | points for seed in seeds]


def vit_records() -> list[dict]:
    records = []
    for arm, values in SCORES.items():
        names = dict(method=arm, arm=arm, control=arm == "control", lora=False)
        names |= {"tail": TAILS.get(arm), "lam": 0.1 if arm == "prehab" else 0.0}
        for removed in (0.4, 0.6):
            for seed, value in zip(SEEDS, values, strict=True):
                score = value if removed == 0.6 else value + 30
                place = dict(removed=removed, achieved=removed, value=score, seed=seed)
                records.append(names | place | TOP1)
    return records


def line(sentence: str, status: str = "passes", **other) -> dict:
    """A check as `claim` keeps it."""
    return dict(sentence=sentence, status=status, paper="", ours="tiny", profile="laptop") | other


def enter(home: Path, monkeypatch) -> Path:
    """A repository of one notebook with its finished run, as the working directory."""
    (home / "notebooks").mkdir()
    (home / "notebooks" / "03_vit.ipynb").write_text('{"cells": []}')
    monkeypatch.chdir(home)
    write_run(home, "03_vit", vit_records())
    return home


def write_run(
    home: Path, name: str, records=None, claims=(), about=ABOUT, profile="laptop", folder="laptop", scale=None
) -> Path:
    """A finished run in HOME/runs/FOLDER/NAME. The notebook is what its name has before a dot.

    scale: the curves of its result; those of `curves` where nothing is said.
    """
    place = home / "runs" / folder / name
    place.mkdir(parents=True, exist_ok=True)
    notebook = name.partition(".")[0]
    (place / "run.json").write_text(json.dumps({"profile": profile, "notebook": notebook, "files": [], "params": {}}))
    if records is not None:
        result = {"about": about, "protocol": "on held-out pairs", "records": records}
        result["curves"] = curves() if scale is None else scale
        (place / "result.json").write_text(json.dumps(result))
    (place / "claims.jsonl").write_text("".join(json.dumps(one) + "\n" for one in claims))
    return place
