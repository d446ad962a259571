"""The house: how large its rooms may be, which way the arrows point, and which names others rely on."""

import ast
import importlib
import inspect
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "prehab_lib"
SOURCES = sorted(LIBRARY.rglob("*.py"))

# What exceeds a bound today, with its reason. These lists may only shrink.
LONG_FILES: dict[str, str] = {}
MANY_PARAMETERS: dict[str, str] = {}
LONG_DOCSTRINGS: dict[str, str] = {}

# Beside the flat core, tasks, report and exercises, a notebook may open two rooms.
ALWAYS = {"tasks", "report", "exercises"}
GRANTED = {
    "02b_rulers_in_practice": {"rivals"},
    "03_vit": {"fast", "scale"},
    "04_bert_glue": {"fast"},
    "05_llama": {"fast", "scale"},
    "06_ablations": {"fast", "rivals"},
    "07_adaptive_rank": {"rivals"},
    "07b_ranks_compared": {"fast", "rivals"},
    "08_cost": {"fast", "scale"},
    "09_beyond": {"beyond", "rivals"},
    "09b_one_run": {"beyond", "rivals"},
    "11_one_arm": {"fast", "rivals"},
}

NAMES = {
    "budget": "rank_for break_even_rank",
    "factors": "Factors LowRankLinear",
    "stats": "LayerStats collect",
    "weightings": "WEIGHTINGS decompose decompose_all Decomposition error",
    "surrogates": "SURROGATES",
    "allocation": "ALLOCATIONS",
    "methods": "METHODS",
    "surgery": "compress Report save load",
    "prehab": "prehab",
    "rehab": "rehab",
}
FIELDS = {"gram", "mean_abs", "max_abs", "fisher_in", "fisher_out", "kron_in", "kron_out", "logit_gram", "grad"}
FIELDS |= {"influence", "tokens"}
RIVALS = {"svd", "fwsvd", "gfwsvd", "asvd", "svd_llm", "svd_llm_v2", "swift_svd", "zs_svd", "io_svd", "dobi_svd"}


def lines_of(files) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def relative(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    ("what", "files", "most"),
    [
        ("the flat core", sorted(LIBRARY.glob("*.py")), 2500),
        ("the package", SOURCES, 15000),
        ("the tests", sorted((ROOT / "tests").rglob("*.py")), 16500),
        ("README.md", [ROOT / "README.md"], 130),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_house_stays_small(what, files, most):
    assert lines_of(files) <= most, f"{what} has {lines_of(files)} lines, {most} are allowed"


def test_a_file_is_read_in_one_sitting():
    long = {relative(file) for file in SOURCES if lines_of([file]) > 300}
    assert long == set(LONG_FILES)


def functions(tree: ast.Module):
    """(dotted name, node) of the functions and classes of a module and of its classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                if isinstance(child, ast.FunctionDef):
                    yield f"{node.name}.{child.name}", child


def test_a_public_function_takes_twelve_parameters_at_most():
    many = set()
    for file in SOURCES:
        for name, node in functions(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) or any(part.startswith("_") for part in name.split(".")):
                continue
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if len([argument for argument in given if argument.arg not in ("self", "cls")]) > 12:
                many.add(f"{relative(file)}:{name}")
    assert many == set(MANY_PARAMETERS)


def test_a_docstring_has_fifteen_lines_at_most():
    long = set()
    for file in SOURCES:
        for name, node in functions(ast.parse(file.read_text(encoding="utf-8"))):
            if len((ast.get_docstring(node) or "").splitlines()) > 15:
                long.add(f"{relative(file)}:{name}")
    assert long == set(LONG_DOCSTRINGS)


def test_arrows_point_down():
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


def rooms_of(notebook: Path) -> set[str]:
    """Sub-packages of the library that a notebook's code cells import."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    packages = {folder.name for folder in LIBRARY.iterdir() if (folder / "__init__.py").is_file()}
    found = set()
    for source in code:
        plain = "\n".join(line for line in source.splitlines() if line.lstrip()[:1] not in ("%", "!"))
        for node in ast.walk(ast.parse(plain)):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            inside = [name.split(".")[1] for name in names if name.startswith("prehab_lib.")]
            found |= packages & set(inside)
    return found


def test_a_notebook_opens_two_rooms_at_most_beside_those_of_all():
    assert max(map(len, GRANTED.values())) <= 2
    for notebook in sorted((ROOT / "notebooks").rglob("[0-9][0-9]*_*.ipynb")):
        rooms = rooms_of(notebook) - ALWAYS
        assert rooms <= GRANTED.get(notebook.stem, set()), f"{relative(notebook)} opens {sorted(rooms)}"
    for name, granted in GRANTED.items():
        assert granted <= rooms_of(ROOT / "notebooks" / f"{name}.ipynb"), f"{name} no longer needs all of {granted}"


def test_names_that_others_rely_on_are_where_they_were():
    for module, names in NAMES.items():
        room = importlib.import_module(f"prehab_lib.{module}")
        for name in names.split():
            assert hasattr(room, name), f"prehab_lib.{module} has no {name}"


def test_what_these_names_hold():
    from prehab_lib import methods, prehab, stats, surgery, surrogates, weightings

    assert set(stats.LayerStats.__dataclass_fields__) >= FIELDS
    assert set(methods.METHODS) >= RIVALS
    assert {"nuclear", "nuclear_ratio", "stable_rank", "entropy_rank"} <= set(surrogates.SURROGATES)
    kind = weightings.Decomposition
    assert {"left", "right", "sigma", "truncate"} <= {*dir(kind), *kind.__dataclass_fields__}
    assert {"achieved", "ranks", "parameters", "bytes", "kept_dense"} <= set(surgery.Report.__dataclass_fields__)
    given = inspect.signature(prehab.prehab).parameters
    assert given["reduction"].default == "sum" and given["coordinates"].default == "weight"
    given = inspect.signature(surgery.compress).parameters
    wanted = ["model", "method", "removed", "stats", "layers", "decompositions", "task_loss", "batches", "validation"]
    assert list(given)[:9] == wanted
