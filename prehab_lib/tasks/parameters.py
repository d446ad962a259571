"""The parameters of a notebook: read from its own cell, checked before a run and again inside it.

The cell tagged `parameters` is the only place for names, types and defaults. It is parsed, never
executed; a pydantic model that refuses unknown names and wrong types is built from it. papermill
itself only warns about an unknown name.
"""

import ast
import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from prehab_lib.tasks import rules

_TYPES = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: `steps: int = 20  # prehab steps`."""

    name: str
    annotation: object
    default: object
    comment: str


def _type(node: ast.expr):
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return _TYPES[node.id]
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _type(node.left) | _type(node.right)
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("list", "dict")
    ):
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _TYPES[node.value.id][tuple(_type(item) for item in inside)]
    raise ValueError(
        f"the type {ast.unparse(node)} is none of {', '.join(_TYPES)}, list[...], dict[...], ... | None"
    )


def parse(source: str, where: str) -> dict[str, Parameter]:
    """The parameters of one cell's source. Raises ValueError naming the line that is not `name:
    type = literal`.
    """
    lines, found = source.splitlines(), {}
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        raise ValueError(
            f"{where}: the parameters cell is not Python: {error.msg}, line {error.lineno}"
        ) from None
    for node in body:
        line = lines[node.lineno - 1].strip()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if (
            not isinstance(node, ast.AnnAssign)
            or not isinstance(node.target, ast.Name)
            or node.value is None
        ):
            raise ValueError(
                f"{where}: a line of the parameters cell must read `name: type = literal`, not `{line}`"
            )
        try:
            annotation, default = _type(node.annotation), ast.literal_eval(node.value)
        except ValueError as error:
            reason = str(error) if "the type" in str(error) else "the value must be a literal"
            raise ValueError(f"{where}: `{line}`: {reason}") from None
        _, _, comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")
        found[node.target.id] = Parameter(node.target.id, annotation, default, comment.strip())
    return found


def cell_of(notebook: Path) -> dict | None:
    """The cell tagged `parameters` of a notebook file, None where there is none. Raises ValueError
    for more than one.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{notebook} is not a notebook (nbformat 4)") from None
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) > 1:
        raise ValueError(
            f"{notebook}: {len(tagged)} cells are tagged `parameters`, tag exactly one"
        )
    return tagged[0] if tagged else None


def read(notebook: Path) -> dict[str, Parameter]:
    """Names, types, defaults and comments of a notebook's parameters; empty where no cell is
    tagged.
    """
    cell = cell_of(notebook)
    return parse("".join(cell["source"]), Path(notebook).name) if cell else {}


def model(notebook: Path, known: dict[str, Parameter] | None = None):
    """The pydantic model of a notebook's parameters: strict types, no unknown names, frozen."""
    from pydantic import ConfigDict, create_model

    known = read(notebook) if known is None else known
    config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )
    return create_model(
        Path(notebook).stem,
        __config__=config,
        **{p.name: (p.annotation, p.default) for p in known.values()},
    )


def _validated(notebook: Path, known: dict[str, Parameter], values: dict):
    from pydantic import ValidationError

    where = Path(notebook).stem
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = (
                f'did you mean "{close[0]}"?' if close else f"it has {', '.join(known) or 'none'}"
            )
            raise ValueError(f'{where} has no parameter "{name}": {remedy}')
    for name, value in values.items():
        try:
            rules.apply(name, value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    try:
        return model(notebook, known)(**values)
    except ValidationError as failed:
        first = failed.errors()[0]
        name, message = first["loc"][0], first["msg"].replace("Input should be", "must be")
        raise ValueError(f"{where}: {name} = {values[name]!r} {message}") from None


def resolve(notebook: Path, overrides: dict) -> dict:
    """Every parameter of a notebook: its defaults, replaced by the overrides, checked.

    Raises ValueError, one sentence, for an unknown name (with the closest known one), a wrong type
    or a refused value.
    """
    known = read(notebook)
    defaults = {name: parameter.default for name, parameter in known.items()}
    return _validated(notebook, known, defaults | overrides).model_dump()


def find(name: str) -> Path:
    """The file of a notebook that has parameters, looked for where the runner says and around the
    current folder.

    Raises FileNotFoundError naming the folders.
    """
    told = os.environ.get("PREHAB_NOTEBOOK_DIR")
    here = Path.cwd()
    checkout = Path(__file__).resolve().parents[2] / "notebooks"
    folders = [*([Path(told)] if told else []), here, here.parent, here / "notebooks", checkout]
    for folder in folders:
        file = folder / f"{name}.ipynb"
        if file.is_file() and cell_of(file):
            return file
    looked = ", ".join(str(folder) for folder in folders)
    raise FileNotFoundError(
        f"{name}.ipynb, with its parameters cell, is in none of {looked}: set PREHAB_NOTEBOOK_DIR"
    )


def check(name: str, namespace: dict):
    """First line after a parameters cell: `P = parameters.check("03_vit", globals())`.

    Reads the current values from the namespace and returns them, checked, as attributes of one
    frozen object. Raises ValueError, one sentence, naming the parameter that is missing or wrong.
    """
    notebook = find(name)
    known = read(notebook)
    if missing := [parameter for parameter in known if parameter not in namespace]:
        raise ValueError(f"{name}: {missing[0]} is not set: run the cell tagged `parameters` first")
    return _validated(notebook, known, {parameter: namespace[parameter] for parameter in known})


def _loader():
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe YAML in which 1e-4 is a number and a repeated key is an error."""

    def mapping(loader, node):
        keys = [key.value for key, _ in node.value]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f'"{repeated[0]}" stands there twice')
        return yaml.SafeLoader.construct_mapping(loader, node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    number = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    return Loader


def load_value(text: str):
    """The value of `-p name=value`: YAML, so 0.4, 1e-4, [0.2, 0.4], true and text all mean what
    they say.
    """
    import yaml

    return yaml.load(text, Loader=_loader())


def load_file(path: Path) -> dict:
    """A flat YAML file of parameters. Raises ValueError naming the file and the line that is wrong."""
    import yaml

    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_loader())
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path}: write one `name: value` a line")
    return values
