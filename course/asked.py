"""Which exercises a notebook asks for, and answers on their way to a student's copy and back, as JSON."""

import re
from pathlib import Path

CALL = re.compile(r"""^check\(["'](\d+\.\d+)["'], (\w+)\)""", re.MULTILINE)


def asked_in(notebook: Path) -> dict[str, str]:
    """Exercise -> name of the function that is asked for, by the notebook's `check` calls."""
    from prehab_lib.tasks.parameters import content  # imports pydantic, which a submission does not need

    cells = content(notebook)["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return {id: name for source in code for id, name in CALL.findall(source)}


def encode(value, foreign: bool = False):
    """The value as JSON has it, for `answers.decode`. TypeError for another type; `foreign` keeps what it shows, as text."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value)
    if type(value) is list:
        return [encode(item, foreign) for item in value]
    if type(value) is tuple:
        return {"tuple": [encode(item, foreign) for item in value]}
    if type(value) is dict:
        return {"dict": [encode(list(pair), foreign) for pair in value.items()]}
    if hasattr(value, "detach") and hasattr(value, "dtype"):
        return {"tensor": encode(value.tolist()), "dtype": str(value.dtype).removeprefix("torch.")}
    if foreign:
        return f"{type(value).__name__} {value!r}"[:60]
    use = "use numbers, text, lists, tuples, dicts, tensors"
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON: {use}")
