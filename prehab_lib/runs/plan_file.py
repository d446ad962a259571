"""A plan as data, for a driver elsewhere: a file of JSON that any machine with this checkout can
read back.

{"format": 1, "profile": "lab", "runs": [{"name": "03_vit", "notebook": "notebooks/03_vit.ipynb",
 "params": {...}, "needs": [], "last": false, "threads": 8, "gpu": 1, "minutes": 7.5, "memory_mb":
 2000, "gpu_memory_gb": null, "priced": "measured"}]}
"""

from pathlib import Path

from prehab_lib.runs.plan import Price, Run, notebooks
from prehab_lib.tasks import parameters

FORMAT = 1
_NUMBER = (int, float, type(None))
_KINDS = {
    "name": str,
    "notebook": str,
    "params": dict,
    "needs": list,
    "last": bool,
    "threads": int,
    "gpu": int,
    "minutes": _NUMBER,
    "memory_mb": _NUMBER,
    "gpu_memory_gb": _NUMBER,
}


def as_data(planned: list[Run]) -> dict:
    """A plan of one profile as what JSON can hold. Paths in parameters are absolute, notebooks
    relative to the checkout.
    """
    profiles = {run.profile for run in planned}
    if len(profiles) != 1:
        raise ValueError(f"a plan has runs of one profile, not of {len(profiles)}")
    return {"format": FORMAT, "profile": profiles.pop(), "runs": [_one(run) for run in planned]}


def _one(run: Run) -> dict:
    return {
        "name": run.name,
        "notebook": f"notebooks/{run.notebook.name}",
        "params": run.params,
        "needs": list(run.needs),
        "last": run.last,
        "threads": run.threads,
        "gpu": run.gpu,
        "minutes": run.price.minutes,
        "memory_mb": run.price.memory_mb,
        "gpu_memory_gb": run.price.gpu_memory_gb,
        "priced": run.price.source,
    }


def from_data(data: dict, root: Path) -> list[Run]:
    """The runs of a plan read from JSON. root: the folder that holds notebooks/.

    Raises ValueError, one sentence, for another format, a field that is missing or of another type,
    a notebook that is not here, parameters that the notebook refuses, a name twice, or a run that
    needs one that does not stand before it.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        told = data.get("format") if isinstance(data, dict) else None
        raise ValueError(
            f"this plan has format {told!r}, not {FORMAT}: write it anew with this version's `plan --json`"
        )
    if not isinstance(data.get("profile"), str) or not isinstance(data.get("runs"), list):
        raise ValueError(
            "this plan lacks its profile or its list of runs: write it anew with `plan --json`"
        )
    known = {f"notebooks/{file.name}": file for file in notebooks(root).values()}
    planned: list[Run] = []
    for fields in data["runs"]:
        planned.append(_read(fields, data["profile"], known, [run.name for run in planned]))
    return planned


def _read(fields: dict, profile: str, known: dict[str, Path], before: list[str]) -> Run:
    where = _checked(fields)
    if fields["notebook"] not in known:
        raise ValueError(
            f"{where}: there is no {fields['notebook']} here: write the plan anew with this checkout"
        )
    notebook = known[fields["notebook"]]
    if fields["name"].partition(".")[0] != notebook.stem or "/" in fields["name"]:
        raise ValueError(
            f"{where} is no name for a run of {notebook.stem}: it must start with the notebook's"
        )
    if fields["name"] in before:
        raise ValueError(f"{where} stands twice: give each run a name of its own")
    if absent := [name for name in fields["needs"] if name not in before]:
        raise ValueError(f"{where} needs {absent[0]}, which does not stand before it in the plan")
    return Run(
        fields["name"],
        notebook,
        profile,
        parameters.resolve(notebook, fields["params"]),
        needs=tuple(fields["needs"]),
        last=fields["last"],
        threads=fields["threads"],
        gpu=fields["gpu"],
        price=Price(
            fields["minutes"],
            fields["memory_mb"],
            fields["gpu_memory_gb"],
            str(fields.get("priced", "unknown")),
        ),
    )


def _checked(fields) -> str:
    """What to call a run in messages. Raises ValueError for a missing or wrong field."""
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        raise ValueError("a run of this plan has no name: write the plan anew with `plan --json`")
    where = f"plan: {fields['name']}"
    for name, kind in _KINDS.items():
        value = fields.get(name)
        if (
            name not in fields
            or not isinstance(value, kind)
            or (isinstance(value, bool) and kind is not bool)
        ):
            raise ValueError(
                f"{where} has {name} = {value!r}: write the plan anew with `plan --json`"
            )
    if fields["threads"] < 1 or fields["gpu"] not in (0, 1):
        raise ValueError(
            f"{where} has threads = {fields['threads']}, gpu = {fields['gpu']}: 1 or more, and 0 or 1"
        )
    return where
