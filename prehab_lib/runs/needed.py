"""Which data the notebooks of a profile need, where it was looked for, and what is missing."""

import os

from prehab_lib.runs import plan
from prehab_lib.tasks import data


def _line(name: str, data_root: str | None) -> tuple[str, bool]:
    """What to say of a data set, and whether it is at hand."""
    source = data.DATASETS[name]
    name += f" ({source.note})" if source.note else ""
    try:
        folder = data.where(name.partition(" (")[0], data_root)
    except FileNotFoundError as error:
        return f"{name} is missing: {error}", False
    if folder is None:
        return f'{name} is downloaded from the hub as "{source.hub}" when the run starts', False
    return f"{name} is in {folder}", True


def lines(profile: str, data_root: str | None = None) -> list[str]:
    """What to print: a line for each notebook and data set, then the remedy where one is missing.

    data_root: the folder to look in instead of the one PREHAB_DATA names. Raises ValueError for an
    unknown profile.
    """
    plan.check_profile(plan.home(), profile)
    looked = data_root or os.environ.get("PREHAB_DATA") or "no folder: PREHAB_DATA is not set"
    said, missing = [f"profile {profile}, looking in {looked}"], []
    for notebook in plan.notebooks(plan.home()):
        names = data.NEEDS.get(notebook, {}).get(profile, [])
        if not names:
            said.append(f"{notebook}: nothing, its data is embedded")
        for name in names:
            line, at_hand = _line(name, data_root)
            said.append(f"{notebook}: {line}")
            if not at_hand and name not in missing:
                missing.append(name)
    if missing:
        remedy = "For data of your own: set PREHAB_DATA, or -p data_root=FOLDER, to the folder"
        said.append(f"{remedy} that holds {', '.join(missing)}.")
    return said
