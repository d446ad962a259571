"""The parameters of a notebook: read from its own cell, checked before a run and again inside it.

The cell tagged `parameters` is the only place for names, types and defaults. It is parsed, never
executed: papermill only warns of unknown names, and loses lines with a `=` in the comment.
"""

import ast
import difflib
import json
import os
import re
from pathlib import Path
from typing import ClassVar

import yaml
from pydantic import ConfigDict, ValidationError, create_model

from prehab_lib.tasks import rules

_TYPES = {kind.__name__: kind for kind in (int, float, str, bool, list, dict)} | {"None": None}
_CONFIG = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())


def _type(node: ast.expr):
    """The type that an annotation names. Raises KeyError or TypeError where it names none."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _type(node.left) | _type(node.right)
    if isinstance(node, ast.Subscript):
        inside = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _type(node.value)[tuple(_type(item) for item in inside)]
    return _TYPES[ast.unparse(node)]


def parse(source: str, where: str) -> dict[str, tuple]:
    """Name -> (type, default) of a cell. Raises ValueError naming the line that is none."""
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        what = f"{error.msg}, line {error.lineno}"
        raise ValueError(f"{where}: the parameters cell is not Python: {what}") from None
    parameters = {}
    for node in body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a text between the parameters
        try:
            parameters[node.target.id] = _type(node.annotation), ast.literal_eval(node.value)
        except (AttributeError, KeyError, TypeError, ValueError):  # another statement, type, value
            must = "a line of parameters must read `name: type = literal`, with a type among"
            types = f"{', '.join(_TYPES)}, list[...], dict[...] or ... | ..."
            raise ValueError(f"{where}: {must} {types}, not `{ast.unparse(node)}`") from None
    return parameters


def content(notebook: Path) -> dict:
    """A notebook as JSON has it. Raises ValueError naming the file where it is none."""
    try:
        found = json.loads(notebook.read_text(encoding="utf-8-sig"))
        for cell in found["cells"]:
            cell["cell_type"] + "".join(cell["source"])  # what every reader asks of it
        return found
    except (LookupError, TypeError, ValueError, RecursionError, IsADirectoryError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"{notebook} is not a notebook ({what}): restore the file") from None


def read(notebook: Path) -> dict[str, tuple]:
    """`parse` of a notebook's tagged cell; empty without.  ValueError for two, or another file."""
    cells = content(notebook)["cells"]
    tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", [])]
    if len(tagged) > 1:
        many = f"{len(tagged)} cells are tagged `parameters`"
        raise ValueError(f"{notebook}: {many}, tag exactly one")
    return parse("".join(tagged[0]["source"]), notebook.name) if tagged else {}


def validated(where: str, known: dict[str, tuple], values: dict):
    """The values as one frozen object, checked by RULES and type; ValueError for a wrong one."""
    unknown = [name for name in values if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        remedy = f'did you mean "{close[0]}"?' if close else f"it has {', '.join(known) or 'none'}"
        raise ValueError(f'{where} has no parameter "{unknown[0]}": {remedy}')
    for name, value in values.items():
        if not _is_plain(value):
            must = "text, finite numbers below 2**63, lists, or mappings with text as keys"
            raise ValueError(f"{where}: {name} = {repr(value)[:80]}: it must be {must}")
    ruled = {name: (rules.kind(name), ...) for name in known}
    try:
        create_model(where, __config__=_CONFIG, **ruled).model_validate(values, strict=True)
        return create_model(where, __config__=_CONFIG, **known).model_validate(values, strict=True)
    except ValidationError as failed:
        raise ValueError(f"{where}: {_sentence(values, failed.errors()[0])}") from None


def _is_plain(value) -> bool:
    """Whether JSON holds it as it is, with whole numbers that torch takes."""

    def whole(digits: str) -> int | None:
        return int(digits) if abs(int(digits)) < 2**63 else None

    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode()  # refuses half a character
        return json.loads(text, parse_int=whole) == value and "\\u0000" not in text
    except (ValueError, TypeError, RecursionError):
        return False


def _sentence(values: dict, error: dict) -> str:
    """What pydantic found wrong with a parameter, as one sentence."""
    name, *inside = error["loc"]
    entry = {"missing": "it lacks", "extra_forbidden": "it has no entry"}.get(error["type"])
    if entry:
        return f"{name} = {values[name]!r}: {entry} {inside[-1]}"
    if isinstance(values[name], dict) and inside and inside[-1] != "[key]":
        name += f"[{inside[0]!r}]"
    message = error["msg"].removeprefix("Value error, ").replace(" after validation", "")
    message = re.sub("^(Input|List) should", "it must", message)
    return f"{name} = {error['input']!r}: {message}"


def resolve(notebook: Path, overrides: dict) -> dict:
    """Every parameter of a notebook: its defaults, replaced by the overrides, checked."""
    known = read(notebook)
    defaults = {name: default for name, (_, default) in known.items()}
    return validated(notebook.stem, known, defaults | overrides).model_dump()


def find(name: str) -> Path:
    """The file of a notebook that has parameters, where the runner says or near this folder."""
    here = Path.cwd()
    folders = [here, here.parent, here / "notebooks", rules.LIBRARY.parent / "notebooks"]
    folders.insert(0, Path(os.environ.get("PREHAB_NOTEBOOK_DIR") or here))
    for folder in folders:
        file = folder / f"{name}.ipynb"
        if file.is_file() and read(file):
            return file
    looked = f"{name}.ipynb, with its parameters cell, is in none of {', '.join(map(str, folders))}"
    raise FileNotFoundError(f"{looked}: set PREHAB_NOTEBOOK_DIR")


def check(name: str, namespace: dict):
    """`P = parameters.check("03_vit", globals())`, after the cell: its values, `validated`."""
    known = read(find(name))
    unset = [parameter for parameter in known if parameter not in namespace]
    if unset:
        raise ValueError(f"{name}: {unset[0]} is not set: run the cell tagged `parameters` first")
    return validated(name, known, {parameter: namespace[parameter] for parameter in known})


class _Loader(yaml.SafeLoader):
    """Plain YAML 1.2: text, numbers, true, false, null, lists, and mappings with text as keys.

    PyYAML's own 1.1 reads 010 as 8, 1:30 as 90, no as false and 1e-4 as text.
    """

    yaml_implicit_resolvers: ClassVar = {}

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if not key.tag.endswith(":str"):
                key = str(key.value)[:80]
                raise ValueError(f"the key {key} is no text: quote it if it is meant so")
            if keys.count(key.value) > 1:
                raise ValueError(f'"{key.value}" stands there twice')
        return super().construct_mapping(node, deep=True)

    def number(self, node):
        text = node.value.replace("_", "")
        if re.fullmatch(r"[-+]?\d+", text):
            return int(text)
        return int(text, 0) if text[:2] in ("0x", "0o") else float(text)


_NUMBER = r"[-+]?(\.\d[\d_]*|\d[\d_]*(\.[\d_]*)?)([eE][-+]?\d+)?|0x[0-9a-fA-F]+|0o[0-7]+"
_NUMBERS = re.compile(rf"(?:{_NUMBER}|[-+]?\.(?i:inf|nan))$")
for _kind, _written, _first in (
    ("null", re.compile("(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("float", _NUMBERS, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _written, _first)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)


def load_value(text: str):
    """The value of `-p name=value`, as YAML 1.2. Raises ValueError saying what is wrong."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, LookupError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def load_file(path: Path) -> dict:
    """A flat YAML file of parameters. Raises ValueError naming the file and what is wrong."""
    try:
        values = load_value(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path}: write one `name: value` a line")
    return values
