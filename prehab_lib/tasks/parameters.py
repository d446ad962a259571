"""The parameters of a notebook: read from its own cell, checked before a run and again inside it.

The cell tagged `parameters` is the only place for names, types and defaults. It is parsed, never
executed; a pydantic model that refuses unknown names and wrong types is built from it, and RULES
bound the values further. papermill itself only warns about an unknown name, and its own parser
loses a line whose comment holds a `=`.
"""

import ast
import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ConfigDict, ValidationError, create_model

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
    """The type that an annotation names. Raises ValueError for one that no cell may use."""
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return _TYPES[node.id]
    if isinstance(node, ast.Constant) and node.value is None:
        return None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _type(node.left) | _type(node.right)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("list", "dict"):
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _type(node.value)[tuple(_type(item) for item in inside)]
    known = f"{', '.join(_TYPES)}, list[...], dict[...], ... | None"
    raise ValueError(f"the type {ast.unparse(node)} is none of {known}")


def parse(source: str, where: str) -> dict[str, Parameter]:
    """The parameters of one cell's source.

    Raises ValueError naming the line that is not `name: type = literal`.
    """
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        what = f"{error.msg}, line {error.lineno}"
        raise ValueError(f"{where}: the parameters cell is not Python: {what}") from None
    lines, parameters = source.splitlines(), {}
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a text between the parameters
        line = lines[node.lineno - 1].strip()
        named = isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        if not named or node.value is None:
            must = "a line of the parameters cell must read `name: type = literal`"
            raise ValueError(f"{where}: {must}, not `{line}`")
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"{where}: `{line}`: the value must be a literal") from None
        try:
            annotation = _type(node.annotation)
        except ValueError as error:
            raise ValueError(f"{where}: `{line}`: {error}") from None
        comment = lines[node.end_lineno - 1][node.end_col_offset :].partition("#")[2].strip()
        parameters[node.target.id] = Parameter(node.target.id, annotation, default, comment)
    return parameters


def cell_of(notebook: Path) -> dict | None:
    """The cell of a notebook file that is tagged `parameters`, None where there is none.

    Raises ValueError for more than one, or a file that is no notebook.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{notebook} is not a notebook (nbformat 4)") from None
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) > 1:
        count = len(tagged)
        raise ValueError(f"{notebook}: {count} cells are tagged `parameters`, tag exactly one")
    return tagged[0] if tagged else None


def read(notebook: Path) -> dict[str, Parameter]:
    """Names, types, defaults and comments of a notebook's parameters; empty without a cell."""
    cell = cell_of(notebook)
    return parse("".join(cell["source"]), Path(notebook).name) if cell else {}


def _validated(notebook: Path, known: dict[str, Parameter], values: dict):
    """The values as attributes of a frozen pydantic object, checked by type and by RULES."""
    where = Path(notebook).stem
    for name in values:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"it has {', '.join(known) or 'none'}"
            if close:
                remedy = f'did you mean "{close[0]}"?'
            raise ValueError(f'{where} has no parameter "{name}": {remedy}')
    strict = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )
    fields = {name: (parameter.annotation, ...) for name, parameter in known.items()}
    model = create_model(where, __config__=strict, **fields)
    try:
        for name, value in values.items():
            rules.check(name, value)
        return model(**values)
    except ValidationError as failed:
        first = failed.errors()[0]
        sentence = rules.sentence(first["loc"][0], None, first)
    except ValueError as error:
        sentence = str(error)
    raise ValueError(f"{where}: {sentence}")


def resolve(notebook: Path, overrides: dict) -> dict:
    """Every parameter of a notebook: its defaults, replaced by the overrides, checked.

    Raises ValueError, one sentence, for an unknown name (with the closest known one), a wrong type
    or a refused value.
    """
    known = read(notebook)
    defaults = {name: parameter.default for name, parameter in known.items()}
    return _validated(notebook, known, defaults | overrides).model_dump()


def find(name: str) -> Path:
    """The file of a notebook that has parameters, where the runner says or near this folder.

    Raises FileNotFoundError naming the folders.
    """
    here, checkout = Path.cwd(), rules.LIBRARY.parent / "notebooks"
    folders = [here, here.parent, here / "notebooks", checkout]
    if folder := os.environ.get("PREHAB_NOTEBOOK_DIR"):
        folders.insert(0, Path(folder))
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
    missing = [parameter for parameter in known if parameter not in namespace]
    if missing:
        raise ValueError(f"{name}: {missing[0]} is not set: run the cell tagged `parameters` first")
    return _validated(notebook, known, {parameter: namespace[parameter] for parameter in known})


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number and a repeated key is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        if repeated:
            raise ValueError(f'"{repeated[0]}" stands there twice')
        return super().construct_mapping(node, deep=True)


_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def load_value(text: str):
    """The value of `-p name=value`, as YAML: 0.4, 1e-4, [0.2, 0.4] and true mean what they say."""
    return yaml.load(text, Loader=_Loader)


def load_file(path: Path) -> dict:
    """A flat YAML file of parameters. Raises ValueError naming the file and what is wrong."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path}: write one `name: value` a line")
    return values
