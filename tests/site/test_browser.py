"""The book in a browser, opened from the disk: every page quiet and described, search and tables work, links hold.

The book of the stored notebooks is built once, and each page is opened once, in a window of 390 pixels.
"""

import re

import pytest

from tests import books, browser
from tests.beside import ROOT
from tests.browser import chromium, visit  # noqa: F401

pytestmark = pytest.mark.usefixtures("chromium")

FACTS = """() => {
  const article = document.querySelector("article") ?? document.body;
  const images = [...article.querySelectorAll("img")];
  return {
    equations: article.querySelectorAll(".math").length,
    typeset: article.querySelectorAll(".math mjx-container svg").length,
    wrong: [...article.querySelectorAll("[data-mjx-error], mjx-merror")].map((one) => one.textContent),
    alternatives: images.map((one) => one.getAttribute("alt")),
    barred: [...article.querySelectorAll("mjx-container")].filter((one) =>  // a scroll bar under a short formula
      one.scrollWidth > one.clientWidth && one.clientWidth < 150 && getComputedStyle(one).scrollbarWidth !== "none").length,
    cropped: [...article.querySelectorAll("mjx-container:has(svg)")].filter((one) => {
      const [outer, inner] = [one, one.querySelector("svg")].map((box) => box.getBoundingClientRect());
      return getComputedStyle(one).overflowY === "hidden" && (inner.top < outer.top - 1 || inner.bottom > outer.bottom + 1);
    }).length,
    broken: images.filter((one) => one.complete && !one.naturalWidth).map((one) => one.src),
  };
}"""
TYPESET = "() => !window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The book of the laptop profile: one notebook run, the others as they are stored."""
    root = books.repository(tmp_path_factory.mktemp("book"))
    books.publish(root, "03_vit")
    books.site.build("laptop", root / "out", root)
    return root / "out" / "html"


@pytest.fixture(scope="module")
def pages(book, chromium):  # noqa: F811
    """Page -> what was found when it was opened on a phone; of the solutions, which are alike, the first."""
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    seen, found = browser.watch(context.new_page()), {}  # one page for all: MathJax is compiled once
    solutions = sorted(book.glob("notebooks/solutions/*.html"))
    for file in [*book.glob("*.html"), *book.glob("docs/*.html"), *book.glob("notebooks/*.html"), solutions[0]]:
        seen.errors, seen.requests = [], []
        seen.page.goto(file.as_uri())
        seen.page.evaluate(TYPESET)
        facts = seen.page.evaluate(FACTS) | {"overflow": seen.overflow()}
        seen.page.goto("about:blank")  # what comes late is put down to the page that asked for it
        found[file.relative_to(book).as_posix()] = facts | {"errors": seen.errors, "outside": seen.outside}
    context.close()
    return found


def test_every_page_is_there_and_opens_without_errors_without_another_machine_and_fits_a_phone(book, pages):
    names = [file.stem for file in (ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb")]
    expected = {f"notebooks/{name}.html" for name in names} | {f"notebooks/solutions/{name}.html" for name in names}
    expected |= {"index.html", "figures.html", "verdicts.html", "search.html"}
    assert {page for page in expected if not (book / page).is_file()} == set()
    assert len(pages) >= len(names) + 5
    for fact in ("errors", "outside", "overflow", "broken", "wrong", "barred", "cropped"):
        assert {page: facts[fact] for page, facts in pages.items() if facts[fact]} == {}, fact


def test_every_equation_is_typeset_and_every_figure_says_what_it_shows(pages):
    assert sum(facts["equations"] for facts in pages.values()) > 200
    assert {page: facts for page, facts in pages.items() if facts["typeset"] < facts["equations"]} == {}
    alternatives = [(page, alt) for page, facts in pages.items() for alt in facts["alternatives"]]
    poor = re.compile(r"^(?!.{15})|^(fig(ure)?|image|picture|table)\.? *\d*\.?$|_build/|\.png", re.IGNORECASE)
    assert len(alternatives) > 60 and [(page, alt) for page, alt in alternatives if not alt or poor.search(alt)] == []


def test_the_search_finds_zero_sum(visit, book):  # noqa: F811
    seen = visit((book / "search.html").as_uri() + "?q=zero-sum")
    hits = seen.page.locator("#search-results ul.search li a")
    hits.first.wait_for()
    assert any("07 ·" in title for title in hits.all_inner_texts())
    hits.first.click()
    seen.page.wait_for_load_state()
    assert "zero" in seen.page.locator("article").inner_text().lower()
    assert (seen.errors, seen.outside) == ([], [])


TABLE = """<table><thead><tr><th></th><th>x</th><th>y</th></tr><tr><th>kind</th><th></th><th></th></tr></thead><tbody>
<tr><td><b>a group</b></td><td></td><td></td></tr>
<tr><th rowspan="2">b</th><td>1,000</td><td>1</td></tr><tr><td>−2</td><td>2</td></tr>
<tr><th>a</th><td>nan</td><td>3</td></tr><tr><th>c</th><td>9.5 %</td><td>4</td></tr></tbody></table>"""


def test_a_table_is_sorted_by_keys_as_numbers_and_back(visit, book, tmp_path):  # noqa: F811
    script = f"<meta charset=utf-8><script src='{(book / '_static' / 'tables.js').as_uri()}'></script>"
    plain = TABLE.replace(' rowspan="2"', "").replace("<tr><td>−2", "<tr><th>b</th><td>−2")
    ungrouped = TABLE.replace("<tr><td><b>a group</b></td><td></td><td></td></tr>", "")
    for table in (plain, ungrouped):
        file = tmp_path / "table.html"
        file.write_text(f"{script}<article>{table}</article>", encoding="utf-8")
        seen = visit(file.as_uri())

        def rows(page=seen.page) -> list[str]:
            return ["".join(row.split()) for row in page.locator("tbody tr").all_inner_texts()]

        before = rows()
        button = seen.page.get_by_role("button", name="x")
        button.focus()
        seen.page.keyboard.press("Enter")
        assert rows() == ["b−22", "c9.5%4", "b1,0001", "anan3"]
        seen.page.keyboard.press("Enter")
        assert rows()[0] == "b1,0001" and rows()[-1] == "anan3"  # what is no number comes last
        seen.page.keyboard.press("Enter")
        assert rows() == before


def test_links_between_chapters_figures_and_pages_hold(book):
    targets = re.compile(r'<a [^>]*href="([^"#:]*)(?:#([^"]*))?"')
    dead = []
    for file in book.rglob("*.html"):
        for path, anchor in targets.findall(file.read_text(encoding="utf-8")):
            to = (file.parent / path).resolve() if path else file
            if not to.is_file() or (anchor and f'id="{anchor}"' not in to.read_text(encoding="utf-8")):
                dead.append((file.name, path, anchor))
    assert dead == []


def test_the_witness_sees_errors_missing_files_and_requests_to_other_machines(visit, tmp_path):  # noqa: F811
    file = tmp_path / "page.html"
    body = "<script>console.error('said'); throw new Error('thrown')</script><img src='gone.png'><div style='width:500px'>a</div>"
    file.write_text(f"<!doctype html>{body}<script src='https://example.org/a.js'></script>")
    seen = visit(file.as_uri(), width=390)
    for word in ("said", "thrown", "gone.png", "ERR_NAME_NOT_RESOLVED"):
        assert any(word in error for error in seen.errors), word
    assert seen.outside == ["https://example.org/a.js"] and seen.overflow() > 100
