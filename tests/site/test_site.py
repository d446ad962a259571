"""The book's pages before Sphinx sees them, and what stops a build: one sentence, and the old book stays."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas
import pytest

from prehab_lib import __main__, site, site_front
from tests import books
from tests.books import code, shown, text

needs_sphinx = pytest.mark.skipif(importlib.util.find_spec("myst_nb") is None, reason="needs the extra `site`")


def gathered(root: Path, profile: str = "laptop") -> Path:
    sources = root / "out" / "source"
    site.gather(profile, root, sources)
    return sources


def page_of(root: Path, name: str = "03_vit"):
    return nbformat.read(gathered(root) / "notebooks" / f"{name}.ipynb", 4)


def test_a_run_of_the_profile_is_shown_with_minutes_machine_profile_and_commit(tmp_path):
    root = books.small(tmp_path, text("# 03 · A chapter\n\nIts text."))
    books.publish(root, "03_vit")
    first = page_of(root).cells[0].source
    for fact in ("laptop", "7.0, 2.0 GB of memory", "Some Processor, 1 thread", "0123456789", "2026-11-22"):
        assert f"<dd>{fact}</dd>" in first
    assert first.startswith("# 03 · A chapter\n") and first.endswith("Its text.")
    assert "has changed" not in first


def test_a_run_of_another_version_of_the_notebook_says_so(tmp_path):
    root = books.small(tmp_path, text("# 03 · A chapter"), code("print(1)"))
    folder = books.publish(root, "03_vit")
    older = nbformat.read(folder / "03_vit.ipynb", 4)
    older.cells[1].source = "print(2)"
    nbformat.write(older, folder / "03_vit.ipynb")
    page = page_of(root)
    assert "the notebook has changed since this run" in page.cells[0].source
    assert page.cells[1].source == "print(2)"


def test_what_the_runner_injects_and_the_cell_that_installs_are_no_change(tmp_path):
    root = books.small(tmp_path, text("# 03 · A chapter"), code("%pip install x", tags=["install"]), code("print(1)"))
    folder = books.publish(root, "03_vit")
    run = nbformat.read(folder / "03_vit.ipynb", 4)
    run.cells[1] = nbformat.from_dict(code("lam = 3", tags=["injected-parameters"]))
    nbformat.write(run, folder / "03_vit.ipynb")
    assert "has changed" not in page_of(root).cells[0].source


def test_without_a_run_and_where_the_run_failed_the_stored_outputs_are_shown(tmp_path):
    root = books.small(tmp_path, text("# 03 · A chapter"))
    books.publish(root, "03_vit", error="boom")
    first = page_of(root).cells[0].source
    assert "there is no run of the laptop profile here" in first
    assert "commit" not in first


def test_the_runs_of_a_grid_are_a_chapter_and_pages_below_it_with_titles_of_their_own(tmp_path):
    root = books.small(tmp_path)
    for name in ("03_vit.one", "03_vit.two"):
        books.publish(root, name)
    chapter = page_of(root)
    second = page_of(root, "03_vit.two")
    assert "[one](/notebooks/03_vit.ipynb), [two](/notebooks/03_vit.two.ipynb)" in chapter.cells[0].source
    assert "/notebooks/03_vit.two.ipynb" in chapter.cells[-1].source and "toctree" in chapter.cells[-1].source
    assert second.cells[0].source.startswith("# 03 · A chapter: two\n")
    assert second.metadata["nosearch"] and "nosearch" not in chapter.metadata


def test_nothing_of_another_machine_stays_and_no_control_without_a_kernel(tmp_path):
    badge = "[![Open](https://example.org/badge.svg)](https://example.org) <img src='https://example.org/b.png'>"
    control = shown(widget={"model_id": "1"}, plain="interactive(...)")
    root = books.small(tmp_path, text(f"# 03 · A chapter\n\n{badge}"), code("interact(f)", control, shown(png="AAAA")))
    page = page_of(root)
    assert "badge.svg" not in page.cells[0].source and "b.png" not in page.cells[0].source
    assert "[Open](https://example.org)" in page.cells[0].source
    assert [list(output.data) for output in page.cells[1].outputs] == [["image/png"]]


def test_links_to_a_host_that_is_not_known_yet_are_left_out_and_known_ones_stay(tmp_path):
    links = "[Open in Colab](https://colab/github/{}/x) · [Open in Binder](https://binder/{})\n\n"
    first = "# 03 · A chapter\n\n" + links.format("OWNER/REPOSITORY", 1) + links.format("me/mine", 2) + "Text."
    source = page_of(books.small(tmp_path, text(first))).cells[0].source
    assert "OWNER" not in source and "me/mine" in source and source.endswith("Text.")


def test_the_table_of_a_cell_stands_under_its_figure_and_the_code_that_draws_is_folded(tmp_path):
    value = shown(html="<table></table>") | {"output_type": "execute_result", "execution_count": 1}
    drawing = code('plots.save(fig, "a", table=t, caption="Two walks")\nt', value, shown(png="AAAA"))
    plain = code("print(1)", {"output_type": "stream", "name": "stdout", "text": "1\n"})
    page = page_of(books.small(tmp_path, text("# 03 · A chapter"), drawing, plain))
    assert [next(iter(output.data)) for output in page.cells[1].outputs] == ["image/png", "text/html"]
    assert page.cells[1].metadata.mystnb.image.alt == "Two walks."
    assert "hide-input" in page.cells[1].metadata.tags and "tags" not in page.cells[2].metadata


def test_a_figure_with_sliders_says_where_they_are(tmp_path):
    page = page_of(books.small(tmp_path, text("# 03 · A chapter"), code("widgets.play(at, rank=range(9))")))
    assert "sliders" in page.cells[2].source and len(page.cells) == 3
    assert "hide-input" in page.cells[1].metadata.tags


def test_a_notebook_without_a_title_is_refused(tmp_path):
    root = books.small(tmp_path, code("print(1)"))
    with pytest.raises(ValueError, match="its title"):
        gathered(root)


README = """# A title

The promise, with [a picture](figures/laptop/a.png), [its absence](figures/laptop/b.png), [a chapter](notebooks/03_vit.ipynb), [a licence](LICENSE).

<!-- verdicts, from x -->
old verdicts
<!-- end of verdicts -->

## Two commands

```sh
## no heading
see [this](LICENSE)
```

## Read it

| notebook | shows | items |
|---|---|---|
| [03_vit](notebooks/03_vit.ipynb) | the experiment | Table II |
"""


def test_the_readme_is_taken_apart_at_its_headings_only():
    found = site_front.sections(README)
    assert list(found) == ["", "Two commands", "Read it"]
    assert found[""].startswith("The promise") and "verdicts" not in found[""]
    assert "## no heading" in found["Two commands"]
    assert site_front.title(README) == "A title"
    assert site_front.told_of(README) == {"03_vit": ("the experiment", "Table II")}


@pytest.mark.parametrize(
    "repository, licence", [("", "a licence"), ("me/mine", "[a licence](https://github.com/me/mine/blob/HEAD/LICENSE)")]
)
def test_links_of_the_readme_hold_in_the_book_or_lead_to_the_host(tmp_path, repository, licence):
    (tmp_path / "a.png").touch()
    told = site_front.relinked(README, "laptop", {"notebooks/03_vit.ipynb"}, tmp_path, repository)
    assert f"[a picture](#fig-a), [its absence](/figures.md), [a chapter](/notebooks/03_vit.ipynb), {licence}." in told
    assert "see [this](LICENSE)" in told  # code is left alone


def test_the_verdicts_are_a_table_whose_last_column_sorts_by_share():
    rows = [
        ("paper", "Eq. (5)", "a < b", "said so", "holds at 3 of 4 layers", "mostly", 3, 4, ""),
        ("control", "Table II", "c", "no control", "not run", "not run", 0, 0, "03_vit"),
    ]
    names = ["group", "where", "says", "paper", "verdict", "status", "held", "cases", "missing"]
    told = site_front.verdict_table(pandas.DataFrame(rows, columns=names))
    assert 'data-sort="0.7500"><span class="verdict mostly">holds at 3 of 4 layers' in told
    assert 'data-sort=""><span class="verdict not-run">not run' in told
    assert "a &lt; b" in told and "2 claims" in told


def test_every_figure_has_its_place_its_numbers_and_who_made_it(tmp_path):
    folder = tmp_path / "figures"
    for name, caption in (("a", "walks"), ("04_x.run/a", "spectra")):
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next((books.HERE / "figures" / "laptop").glob("*.png")), file)
        file.with_suffix(".csv").write_text("x\n1\n")
        about = {"notebook": "04_x", "commit": books.COMMIT}
        file.with_suffix(".json").write_text(json.dumps({"caption": caption, "seeds": [0, 1], "about": about}))
    told = site_front.figures(folder, tmp_path / "source", "laptop", {}, {"notebooks/04_x.ipynb"})
    assert "(fig-a)=\n## Walks" in told and "(fig-04-x-run-a)=\n## Spectra (run)" in told
    assert "[04_x](/notebooks/04_x.ipynb) · seeds 0, 1 · commit 0123456789 · {download}" in told
    assert (tmp_path / "source" / "figures" / "laptop" / "04_x.run" / "a.csv").is_file()


@pytest.mark.parametrize(
    "text, title", [("walks, two", "Walks, two"), ("σ₁ by power", "σ₁ by power"), ("fc2.w", "fc2.w")]
)
def test_a_caption_becomes_a_title_where_it_begins_with_a_word(text, title):
    assert site_front._titled(text) == title


def told(words: list[str], capsys) -> str:
    assert __main__.main(words) == 2
    return capsys.readouterr().err


def test_a_missing_extra_is_one_sentence_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(books.small(tmp_path))
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "myst_nb" else found(name, *rest)
    )
    assert told(["site"], capsys) == "prehab_lib: the book needs myst_nb: pip install -e '.[site]', or make site\n"


def test_an_unknown_profile_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(books.small(tmp_path))
    assert 'unknown profile "lapptop"' in told(["site", "lapptop"], capsys)


def test_a_torn_notebook_of_a_run_is_one_sentence(tmp_path, monkeypatch, capsys):
    root = books.small(tmp_path)
    (books.publish(root, "03_vit") / "03_vit.ipynb").write_text('{"cells": [')
    monkeypatch.chdir(root)
    assert "is no notebook" in told(["site"], capsys)


@needs_sphinx
def test_a_dead_link_stops_the_build_with_a_sentence_and_the_old_book_stays(tmp_path, monkeypatch, capsys):
    root = books.small(tmp_path, text("# 03 · A chapter\n\n[gone](99_gone.ipynb)"))
    old = root / "site_out" / "html" / "index.html"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    monkeypatch.chdir(root)
    said = told(["site", "--out", "site_out"], capsys)
    assert "the book was not built" in said and "03_vit" in said and "99_gone.ipynb" in said
    assert said.count("\n") == 1 and old.read_text() == "old"


@needs_sphinx
def test_a_book_of_one_chapter_without_runs_figures_and_verdicts_is_built(tmp_path, monkeypatch, capsys):
    root = books.small(tmp_path, text("# 03 · A chapter\n\n$a^2$"), code("!ls\nprint(1)"))
    monkeypatch.chdir(root)
    assert __main__.main(["site", "smoke", "--out", "out"]) == 0
    assert "written: out/html/index.html" in capsys.readouterr().out.replace("\\", "/")
    index = (root / "out" / "html" / "index.html").read_text(encoding="utf-8")
    assert "No verdicts of the smoke profile are stored yet" in index
    assert (root / "out" / "html" / "_static" / "mathjax" / "tex-svg.js").is_file()


def test_the_workflow_calls_what_is_there():
    import yaml

    steps = yaml.safe_load((books.HERE / ".github" / "workflows" / "site.yml").read_text())["jobs"]["build"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert ["make site" in commands, "make reproduce" in commands] == [True, True]
    for command in commands:
        words = command.split()
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=books.HERE, capture_output=True, text=True)
            assert done.returncode == 0, command
        assert all((books.HERE / word).is_file() for word in words if word.startswith("tests/"))
    assert next(step for step in steps if "upload-pages" in step.get("uses", ""))["with"]["path"] == "site/_build/html"
