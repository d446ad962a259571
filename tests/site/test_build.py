"""The book's pages before Sphinx sees them, and what stops a build: one sentence, and the old book stays."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

from tests import books
from tests.beside import ROOT
from tests.books import code, site, text

PICTURE = {"image/png": "AAAA"}


def gathered(root: Path) -> Path:
    site.gather("laptop", root / "source", root)
    return root / "source"


def page_of(root: Path, name: str = "03_vit"):
    return nbformat.read(gathered(root) / "notebooks" / f"{name}.ipynb", 4)


def test_a_run_is_shown_with_profile_minutes_machine_commit_and_date_where_it_did_not_fail(tmp_path):
    root = books.small(tmp_path, text("# 03 · A chapter\n\nIts text."))
    failed = books.publish(root, "03_vit", error="boom")
    first = page_of(root).cells[0].source
    assert "there is no run of the laptop profile here" in first and "commit" not in first
    shutil.rmtree(failed.parent)
    books.publish(root, "03_vit")
    first = page_of(root).cells[0].source
    for fact in ("laptop", "7.0, 2.0 GB of memory", "Some Processor, threads: 1", "0123456789", "2026-11-22"):
        assert f"<dd>{fact}</dd>" in first, fact
    assert first.startswith("# 03 · A chapter\n") and first.endswith("Its text.") and "has changed" not in first


def test_a_run_of_another_version_says_so_and_what_the_runner_injects_is_no_change(tmp_path):
    root = books.small(tmp_path, text("# 03 · A chapter"), code("print(1)"))
    file = books.publish(root, "03_vit")
    injected = code("lam = 3", tags=("injected-parameters",))
    for cells, changed in (([injected, code("print(1)")], False), ([code("print(2)")], True)):
        nbformat.write(nbformat.v4.new_notebook(cells=[text("# 03 · A chapter"), *cells]), file)
        page = page_of(root)
        assert ("the notebook has changed since this run" in page.cells[0].source) is changed
        assert page.cells[-1].source == cells[-1].source


def test_the_runs_of_a_grid_are_pages_with_titles_of_their_own(tmp_path):
    root = books.small(tmp_path)
    for name in ("03_vit.one", "03_vit.two"):
        books.publish(root, name)
    chapter, second = page_of(root), page_of(root, "03_vit.two")
    assert chapter.cells[0].source.startswith("# 03 · A chapter\n") and "<dd>one</dd>" in chapter.cells[0].source
    assert second.cells[0].source.startswith("# 03 · A chapter: two\n")
    assert second.metadata["nosearch"] and "nosearch" not in chapter.metadata


def test_figures_are_described_stand_above_their_table_and_their_code_is_folded(tmp_path):
    drawing = code(
        'alt = (\n    "Two "\n    "walks, "\n)\nalt += "one \\"down\\"."\nplots.save(fig, "a", alt=alt)\nt', PICTURE
    )
    value = nbformat.v4.new_output("execute_result", data={"text/html": "<table></table>"}, execution_count=1)
    drawing.outputs.insert(0, value)
    others = [code("# the *first* line\nplt.show()", PICTURE), text("Look **here**\nnow."), code("show()", PICTURE)]
    sliders = code("widgets.play(at, rank=range(9))")
    page = page_of(books.small(tmp_path, text("# 03 · A chapter"), drawing, *others, code("print(1)"), sliders))
    drawn, commented, _, plain, printed, _, told = page.cells[1:]
    assert [next(iter(output.data)) for output in drawn.outputs] == ["image/png", "text/html"]
    alternatives = [cell.metadata.mystnb.image.alt for cell in (drawn, commented, plain)]
    assert alternatives == ['Two walks, one "down".', "the *first* line", "Picture to: Look here now."]
    assert "hide-input" in drawn.metadata.tags and "mystnb" not in printed.metadata
    assert "sliders" in told.source and len(page.cells) == 8
    assert site.alternative('plots.save(fig, "a", alt="Three walks.")', "") == "Three walks."


def test_imports_and_parameters_are_folded_and_nothing_else_that_computes(tmp_path):
    cells = [code("import os\nfrom math import pi"), code("lam = 1", tags=["parameters"])]
    cells += [code("import os\nprint(os.name)"), code("%time 1"), code("")]
    page = page_of(books.small(tmp_path, text("# 03 · A chapter"), *cells))
    folded = ["hide-input" in cell.metadata.get("tags", []) for cell in page.cells[1:]]
    assert folded == [True, True, False, False, False]
    assert page.cells[1].metadata.mystnb.code_prompt_show == "Show imports and parameters"


def test_every_figure_that_a_notebook_saves_is_given_its_alternative_text():
    """In the cell that saves it, or in the one before, which draws and shows it."""
    count = 0
    for file in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        code = [cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"]
        for before, cell in pairwise(code):
            if "plots.save(" in cell.source:
                drawn = cell if "alt =" in cell.source else before
                described = site.alternative(drawn.source, "")
                assert "alt=" in cell.source, (file.name, cell.source[-200:])
                assert 40 < len(described) < 260 and described.endswith("."), (file.name, described)
                count += 1
    assert count >= 37


def test_the_page_of_figures_and_documentation_whose_links_hold(tmp_path):
    sources = gathered(books.small(tmp_path))
    figures = (sources / "figures.md").read_text(encoding="utf-8")
    assert "## Two walks" in figures and ":alt: Two lines that cross." in figures
    assert "[03_vit](/notebooks/03_vit.ipynb) · seeds 0, 1 · commit 0123456789 · {download}" in figures
    assert (sources / "figures" / "laptop" / "walks.csv").is_file()
    page = (sources / "docs" / "reproduce.md").read_text(encoding="utf-8")
    assert "[a chapter](../notebooks/03_vit.ipynb), a licence, [web](https://example.org)." in page
    assert "see [this](LICENSE)" in page  # code is left alone
    assert "None of the laptop profile are stored" in (sources / "verdicts.md").read_text(encoding="utf-8")
    # The front page names every chapter.
    index = (ROOT / "site" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"\(/notebooks/(\w+)\.ipynb\)", index)
    assert named == sorted(file.stem for file in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def refused(words: list[str], root: Path, capfd) -> str:
    assert site.main(words, root) == 2
    return capfd.readouterr().err


def test_what_stops_a_build_is_one_sentence(tmp_path, monkeypatch, capfd):
    root = books.small(tmp_path)
    assert refused(["lapptop"], root, capfd) == 'site: unknown profile "lapptop": choose among laptop, smoke\n'
    books.publish(root, "03_vit").write_text('{"cells": [')
    assert "is no notebook: remove its run's folder" in refused(["--out", str(root / "out")], root, capfd)
    for place, broken in {
        "runs/laptop/03_vit/03_vit.ipynb": "{}",
        "runs/laptop/03_vit/run.json": "[1]",
        "runs/laptop/03_vit/result.json": "null",
        "figures/laptop/walks.json": "x",
        "docs/reproduce.md": "\udcff",
    }.items():
        file = root / place
        whole = books.publish(root, "03_vit") if not file.is_file() else file
        good = (root / "notebooks" / "03_vit.ipynb").read_text() if file.suffix == ".ipynb" else whole.read_text()
        file.write_text(broken, encoding="utf-8", errors="surrogateescape")
        said = refused(["--out", str(root / "out")], root, capfd)
        assert f"{place} is no " in said and "restore the file" in said
        file.write_text(good)
    (root / "runs" / "laptop" / "03_vit" / "result.json").write_text('{"about": null}')
    (root / "runs" / "laptop" / "03_vit" / "run.json").write_text('{"seconds": null}')
    (root / "runs" / "laptop" / "figures").mkdir()  # as a run leaves it that has saved none
    assert "Two walks" in (gathered(root) / "figures.md").read_text()
    nbformat.write(nbformat.v4.new_notebook(cells=[code("print(1)")]), root / "notebooks" / "03_vit.ipynb")
    assert "whose first line is its title" in refused(["smoke", "--out", str(root / "out")], root, capfd)
    (root / "mine" / "html").mkdir(parents=True)  # a folder that is no book is left alone
    assert "mine holds other files than a book" in refused(["smoke", "--out", str(root / "mine")], root, capfd)
    assert "File exists" in refused(["smoke", "--out", str(root / "docs" / "reproduce.md")], root, capfd)
    monkeypatch.setattr(site, "NEEDED", ("not_there",))
    assert refused([], root, capfd) == "site: the book needs not_there: pip install -e '.[site]', or make site\n"


def test_a_dead_link_stops_the_build_and_the_old_book_stays(tmp_path, capfd):
    pytest.importorskip("myst_nb", reason="needs the extra `site`")
    root = books.small(tmp_path, text("# 03 · A chapter\n\n[gone](99_gone.ipynb)"))
    old = root / "site_out" / "html" / "index.html"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    (root / "site_out" / site.MARK).touch()
    message = refused(["--out", str(root / "site_out")], root, capfd)
    assert "99_gone.ipynb" in message and message.endswith("site: the book was not built: Sphinx says why above\n")
    assert old.read_text() == "old"
