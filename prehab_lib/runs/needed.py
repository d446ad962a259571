"""Which data the notebooks of a profile need, where it was looked for, and what is missing."""

import os

from prehab_lib.runs import plan
from prehab_lib.tasks import data


def _line(name: str, data_root: str | None) -> tuple[str, bool]:
    source = data.DATASETS[name]
    note = f" ({source.note})" if source.note else ""
    try:
        found = data.where(name, data_root)
    except FileNotFoundError as error:
        return f"{name}{note} is missing: {error}", False
    if found is None:
        return (
            f'{name}{note} is downloaded from the hub as "{source.hub}" when the run starts',
            False,
        )
    return f"{name}{note} is in {found}", True


def lines(profile: str, data_root: str | None = None) -> list[str]:
    """What to print, a line for each notebook and data set, then the remedy where something is not
    at hand.

    data_root: the folder to look in instead of the one PREHAB_DATA names. Raises ValueError for an
    unknown profile.
    """
    plan.check_profile(plan.home(), profile)
    looked = data_root or os.environ.get("PREHAB_DATA")
    told = [f"profile {profile}, looking in {looked or 'no folder: PREHAB_DATA is not set'}"]
    folders = []
    for notebook in plan.notebooks(plan.home()):
        names = data.NEEDS.get(notebook, {}).get(profile, [])
        if not names:
            told.append(f"{notebook}: nothing, its data is embedded")
        for name in names:
            line, at_hand = _line(name, data_root)
            told.append(f"{notebook}: {line}")
            if not at_hand:
                folders.append(name)
    if folders:
        inside = ", ".join(dict.fromkeys(folders))
        told.append(
            f"For data of your own: set PREHAB_DATA, or -p data_root=FOLDER, to the folder that holds {inside}."
        )
    return told
