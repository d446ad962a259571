"""Which statements of a notebook a function needs: its own cell, and whatever gave a value to the
names that are read there.

So an answer is tried without the minutes that its notebook trains, and what its author wrote for
another exercise cannot spoil it.  By names, not by running: what a name is given in a way that
cannot be read off (`globals()[...]`, `exec`) is missed.
"""

import ast
import re
import symtable
from dataclasses import dataclass, field

MAGIC = re.compile(r"\s*([%!?]|[\w.]+\?+\s*$)")


@dataclass
class Statement:
    """One statement at the top level of a cell; gives: names it sets or changes, reads: names it
    looks up.
    """

    cell: int
    code: ast.stmt
    gives: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)


def parse(cells: list[str]) -> tuple[list[Statement], dict[int, str]]:
    """The statements of all cells, and what is wrong with each cell that is no Python.  Lines for
    IPython are left out.
    """
    statements, faults = [], {}
    for number, source in enumerate(cells):
        try:
            tree = _tree(source)
            statements += [_statement(number, code) for code in tree.body]
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            faults[number] = f"{type(error).__name__}: {getattr(error, 'msg', error)}" + (
                f", line {line}" if line else ""
            )
        except (RecursionError, MemoryError):
            faults[number] = "nested too deep"
    return statements, faults


def needed(statements: list[Statement], name: str) -> list[Statement]:
    """In the order of the notebook, what it takes to have this top-level function; [] where nothing
    gives the name.

    Every statement that gives a needed name counts, and of the cells that define the function
    itself, all.
    """
    home = {s.cell for s in statements if name in s.gives}
    chosen = {i for i, s in enumerate(statements) if s.cell in home}
    pending = {name, "*"} if home else set()
    seen = set()
    while pending:
        seen |= pending
        chosen |= {i for i, s in enumerate(statements) if s.gives & seen}
        pending = set().union(*(statements[i].reads for i in chosen)) - seen
    return [statements[i] for i in sorted(chosen)]


def _tree(source: str) -> ast.Module:
    """Parsed as it stands, or else without %magic, !shell and help? lines; a %%cell magic takes the
    whole cell.
    """
    if source.lstrip().startswith("%%"):
        return ast.Module([], [])
    try:
        return ast.parse(source)
    except SyntaxError:
        lines = source.split("\n")  # replaced one by one, so that line numbers stay
        return ast.parse(
            "\n".join(
                re.sub(r"\S.*", "pass", line) if MAGIC.match(line) else line for line in lines
            )
        )


def _statement(cell: int, code: ast.stmt) -> Statement:
    table = symtable.symtable(ast.unparse(code), "cell", "exec")
    top = table.get_symbols()
    gives = {s.get_name() for s in top if s.is_assigned() or s.is_imported()}
    if isinstance(code, ast.ImportFrom) and code.names[0].name == "*":
        gives.add("*")
    reads = {s.get_name() for s in top if s.is_referenced()} | _global_names(table)
    return Statement(cell, code, gives | _changed(code), reads)


def _global_names(table: symtable.SymbolTable) -> set[str]:
    inner = table.get_children()
    found = {
        s.get_name()
        for child in inner
        for s in child.get_symbols()
        if s.is_global() and s.is_referenced()
    }
    return found.union(*map(_global_names, inner))


def _changed(code: ast.stmt) -> set[str]:
    """x of x.y = ..., x[i] += ... and of a call x.y(...) as a statement: each may change what x
    stands for.
    """
    nodes = (
        []
        if isinstance(code, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        else list(ast.walk(code))
    )
    targets = [
        n
        for n in nodes
        if isinstance(n, (ast.Attribute, ast.Subscript)) and not isinstance(n.ctx, ast.Load)
    ]
    calls = [
        n.value.func for n in nodes if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
    ]
    return {
        name
        for node in [*targets, *calls]
        if not isinstance(node, ast.Name) and (name := _base(node))
    }


def _base(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None
