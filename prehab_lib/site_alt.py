"""What a figure shows, in words, for readers who do not see it: read from the code that draws it
and the table under it.

The text is put together from the comment above the code, the caption it is saved under, its axes,
its panels and the columns of its numbers. Nothing is executed: what only a run knows is left out,
but for the notebook's parameters.
"""

import ast
import html
import re
from collections.abc import Iterator, Mapping

HOLE = "…"  # a value that only a run knows
AXES = {"xlabel": "Across", "ylabel": "Upwards", "label": "Colours", "title": "Panels"}
CALLS = {"set_xlabel": "xlabel", "set_ylabel": "ylabel", "set_title": "title", "suptitle": "title"}
BELOW = "Its numbers are in the table below, with the columns "
COLUMNS = 12  # names of a table's columns that are told, at most


def parameters_of(notebook) -> dict:
    """Name -> value of the literals in a notebook's cells of parameters, the runner's after the
    defaults.
    """
    found = {}
    for cell in notebook.cells:
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            for node in ast.walk(_parsed(cell.source)):
                if isinstance(node, ast.AnnAssign | ast.Assign) and node.value:
                    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                    try:
                        found[ast.unparse(target)] = ast.literal_eval(node.value)
                    except ValueError:
                        continue
    return found


def alternative(
    source: str,
    before: str = "",
    parameters: Mapping = (),
    captions: Mapping[str, str] = (),
    table: str = "",
) -> str:
    """The alternative text of a figure that this code draws.

    before: the Markdown above it, which speaks where the code says nothing of itself. captions:
    name of a saved figure -> caption as its run wrote it. table: the HTML of the numbers under it.
    """
    reader = _Reader(_parsed(source), dict(parameters))
    what, caption = _headline(source), dict(captions).get(saved_as(source)) or reader.caption()
    if caption and caption.casefold() not in what.casefold():
        what = f"{what}: {caption}" if what else caption
    parts = [what or f"Picture to: {_last_paragraph(before)}"]
    for kind, words in AXES.items():
        said = list(dict.fromkeys(filter(None, map(_patched, reader.labels(kind)))))
        parts += [f"{words}: {'; '.join(said)}"] if said else []
    if columns := columns_of(table):
        parts.append(BELOW + "; ".join(columns[:COLUMNS]))
    return " ".join(
        part if part.endswith((".", "?", "!")) else f"{part}."
        for part in map(_plain, parts)
        if part
    )


def saved_as(source: str) -> str:
    """The name under which the code saves its figure; empty where it saves none."""
    calls = [
        call for call in _calls(_parsed(source)) if _name(call) == "save" and len(call.args) > 1
    ]
    return next(
        (call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)), ""
    )


def columns_of(table: str) -> list[str]:
    """Names of an HTML table's columns, as its head gives them."""
    head = re.search(r"<thead>.*?</thead>", table, re.DOTALL)
    cells = re.findall(r"<th\b[^>]*>(.*?)</th>", head[0], re.DOTALL) if head else []
    names = (html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in cells)
    return list(dict.fromkeys(filter(None, names)))


def _headline(source: str) -> str:
    """The comment on top of a cell, as "the forces, and what the same distance buys"."""
    first = source.lstrip().partition("\n")[0]
    return _plain(first.lstrip("# ")) if first.startswith("#") else ""


def _last_paragraph(markdown: str) -> str:
    pieces = [piece for piece in re.split(r"\n\s*\n", markdown) if piece.strip()]
    return _plain(pieces[-1]) if pieces else ""


def _plain(text: str) -> str:
    """One line, without Markdown's signs."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\s+", " ", re.sub(r"[*`$\\]|^[#>]+ ", "", text)).strip()


def _patched(text: str) -> str:
    """A label without its holes where they stand at an end or in brackets; empty where little is
    left.
    """
    text = re.sub(rf"\s*\(\W*{HOLE}\W*\)", "", text)
    text = re.sub(rf"^[\s,:;]*{HOLE}[\s,:;]*|[\s,:;]*{HOLE}[\s,:;]*$", "", text)
    return text if len(re.sub(r"\W", "", text)) > len(re.findall(HOLE, text)) else ""


def _parsed(source: str) -> ast.Module:
    """The code as a tree, without lines that only IPython reads; empty where it is no Python."""
    try:
        return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE))
    except SyntaxError:
        return ast.Module([], [])


def _calls(tree: ast.AST) -> list[ast.Call]:
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


class _Reader:
    """Strings of a piece of code, as far as they can be told without running it."""

    def __init__(self, tree: ast.Module, parameters: dict):
        self.calls, self.parameters = _calls(tree), parameters
        self.names: dict[str, ast.expr] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                self._bind(node.targets[0], node.value)
            if (
                isinstance(node, ast.FunctionDef) and node.args.defaults
            ):  # as the figure stands before anyone moves it
                last = node.args.args[-len(node.args.defaults) :]
                self.names |= {
                    one.arg: value for one, value in zip(last, node.args.defaults, strict=True)
                }

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif (
            isinstance(target, ast.Tuple)
            and isinstance(value, ast.Tuple)
            and len(target.elts) == len(value.elts)
        ):
            for one, other in zip(target.elts, value.elts, strict=True):
                self._bind(one, other)

    def caption(self) -> str:
        """Of `plots.save(..., caption=...)`, or of a dictionary made for it."""
        words = (word for call in self.calls for word in call.keywords)
        return next(
            (_patched(self.text(word.value)) for word in words if word.arg == "caption"), ""
        )

    def labels(self, kind: str) -> Iterator[str]:
        """Texts of the axes' xlabel or ylabel, of panels' titles, or of a colour bar's label."""
        for call in self.calls:
            name = _name(call)
            if CALLS.get(name) == kind and call.args:
                yield self.text(call.args[0])
            if name == ("colorbar" if kind == "label" else "set"):
                yield from (self.text(word.value) for word in call.keywords if word.arg == kind)

    def text(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return _plain(str(node.value))
        if isinstance(node, ast.JoinedStr):
            return _plain("".join(map(self._part, node.values)))
        if isinstance(node, ast.Name) and isinstance(
            self.names.get(node.id), ast.Constant | ast.JoinedStr
        ):
            return self.text(self.names[node.id])
        return HOLE

    def _part(self, part: ast.expr) -> str:
        if isinstance(part, ast.Constant):
            return str(part.value)
        spec = self._part(part.format_spec.values[0]) if part.format_spec else ""
        try:
            return format(self._value(part.value), spec)
        except (KeyError, IndexError, TypeError, ValueError):
            return HOLE

    def _value(self, node: ast.expr):
        """`P.name`, one item of it, or a name with a literal value. Raises KeyError for anything
        else.
        """
        if isinstance(node, ast.Name) and isinstance(self.names.get(node.id), ast.Constant):
            return self.names[node.id].value
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            return self._value(node.value)[node.slice.value]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "P":
            return self.parameters[node.attr]
        raise KeyError(ast.unparse(node))
