"""Finished runs as they lie in runs/PROFILE: what the report, the audit and the figures' keeper
read.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from prehab_lib.runs.store import Store


@dataclass(frozen=True)
class Finished:
    """A finished run as it lies in runs/PROFILE/NAME. label: what its name has beyond the
    notebook's, or all of it.

    figure: the record of one of its figures, which tells who made a run that has no scores.
    """

    name: str
    label: str
    run: dict
    result: dict
    claims: list[dict]
    figure: dict = field(default_factory=dict)

    @property
    def notebook(self) -> str:
        return self.run.get("notebook", self.name)

    @property
    def about(self) -> dict:
        return self.result.get("about") or self.figure.get("about", {})

    @property
    def records(self) -> list[dict]:
        return self.result.get("records", [])

    @property
    def profiles(self) -> set[str]:
        """What the run, its scores and its claims say of their profile: one name, unless files were
        mixed.
        """
        told = [self.run, self.about, *self.claims]
        return {one["profile"] for one in told if one.get("profile")}


def _json(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError:
        raise ValueError(
            f"{file} is not JSON: remove its folder and run the profile again"
        ) from None


def _claims(folder: Path) -> list[dict]:
    file = folder / "claims.jsonl"
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.is_file()
        else []
    )


def _figure(folder: Path, name: str, run: dict) -> dict:
    targets = Store(folder.parent).targets(folder.name, name, run)
    records = [
        target
        for file, target in targets.items()
        if file.startswith("figures/") and file.endswith(".json")
    ]
    return _json(records[0]) if records else {}


def read(folder: Path) -> dict[str, list[Finished]]:
    """Notebook -> its finished runs, of a folder runs/PROFILE. Raises ValueError for a file that is
    torn.
    """
    found: dict[str, list[Finished]] = {}
    for file in sorted(folder.glob("*/run.json")):
        name, run = file.parent.name, _json(file)
        notebook = run.get("notebook", name)
        label = name.removeprefix(notebook).removeprefix(".") or name
        result, claims = _json(file.parent / "result.json"), _claims(file.parent)
        found.setdefault(notebook, []).append(
            Finished(
                name, label, run, result, claims, _figure(folder, name, run) if not result else {}
            )
        )
    return found
