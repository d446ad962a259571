"""The book in a browser, opened from the disk: every page quiet, on a phone too; equations, search, tables, figures.

The book of the stored notebooks is built once, and each page is opened once, in a window of 390 pixels.
"""

import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from prehab_lib import site
from tests import books, browser
from tests.browser import chromium, visit  # noqa: F401

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "never")

FACTS = """() => {
  const article = document.querySelector("article") ?? document.body;
  const visible = (box) => box.getClientRects().length > 0;
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  return {
    headings: [...article.querySelectorAll("h1")].map((one) => one.innerText),
    twice: ids.filter((id, at) => ids.indexOf(id) !== at),
    equations: article.querySelectorAll(".math").length,
    typeset: article.querySelectorAll(".math mjx-container svg").length,
    wrong: [...article.querySelectorAll("[data-mjx-error], mjx-merror")].map((one) => one.textContent),
    alternatives: [...article.querySelectorAll("img")].map((one) => one.getAttribute("alt")),
    broken: [...article.querySelectorAll("img")].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src),
    clipped: [...article.querySelectorAll("table, pre, .math")].filter(visible).filter((one) => {
      if (one.getBoundingClientRect().right <= innerWidth + 1) return false;
      for (let box = one; box !== article; box = box.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return false;
      return true;
    }).map((one) => one.outerHTML.slice(0, 80)),
  };
}"""
TYPESET = "() => !window.MathJax?.startup?.promise || MathJax.startup.promise.then(() => true)"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """The book of the laptop profile: one notebook run, another run twice, the others as they are stored."""
    root = books.repository(tmp_path_factory.mktemp("book"))
    books.publish(root, "03_vit")
    for run in ("acceptability", "belonging"):
        books.publish(root, f"04_bert_glue.{run}")
    return site.build("laptop", root, root / "out")


@pytest.fixture(scope="module")
def pages(book, chromium):  # noqa: F811
    """Every page -> what was found when it was opened on a phone."""
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    seen, found = browser.watch(context.new_page()), {}  # one page for all: MathJax is compiled once
    for file in sorted(file for file in book.rglob("*.html") if "_static" not in file.parts):
        seen.errors, seen.requests = [], []
        seen.page.goto(file.as_uri())
        seen.page.evaluate(TYPESET)
        facts = seen.page.evaluate(FACTS) | {"overflow": seen.overflow()}
        seen.page.goto("about:blank")  # what comes late is told of the page that asked for it
        facts |= {"errors": seen.errors, "outside": seen.outside}
        found[file.relative_to(book).as_posix()] = facts
    context.close()
    return found


def only(pages, name):
    """Page -> its fact, of the pages where there is something to tell."""
    return {page: facts[name] for page, facts in pages.items() if facts[name]}


def test_every_notebook_has_its_page_and_its_solutions(pages):
    names = [file.stem for file in (books.HERE / "notebooks").glob("[0-9][0-9]_*.ipynb")]
    expected = {f"notebooks/{name}.html" for name in names} | {f"notebooks/solutions/{name}.html" for name in names}
    expected |= {"index.html", "figures.html", "reproduce.html", "search.html", "notebooks/04_bert_glue.belonging.html"}
    assert expected <= set(pages)


def test_no_page_says_an_error_in_the_console(pages):
    assert only(pages, "errors") == {}


def test_no_page_asks_another_machine(pages):
    assert only(pages, "outside") == {}


def test_no_page_scrolls_sideways_on_a_phone_and_what_is_wide_can_be_scrolled(pages):
    assert only(pages, "overflow") == {}
    assert only(pages, "clipped") == {}


def test_every_equation_is_typeset(pages):
    assert sum(facts["equations"] for facts in pages.values()) > 200
    assert {page: facts for page, facts in pages.items() if facts["typeset"] < facts["equations"]} == {}
    assert only(pages, "wrong") == {}


def test_every_figure_says_what_it_shows(pages):
    alternatives = [(page, alt) for page, facts in pages.items() for alt in facts["alternatives"]]
    assert len(alternatives) > 60
    poor = re.compile(r"^(?!.{25})|^(fig(ure)?|image|picture|table)\.? *\d*\.?$|_build/|\.png", re.IGNORECASE)
    assert [(page, alt) for page, alt in alternatives if alt is None or poor.search(alt)] == []
    assert only(pages, "broken") == {}


def test_every_page_has_one_title_and_no_two_share_it_or_an_id(pages):
    titles = {page: facts["headings"] for page, facts in pages.items() if page != "genindex.html"}
    assert {page: some for page, some in titles.items() if len(some) != 1} == {}
    assert len({some[0] for some in titles.values()}) == len(titles)
    assert only(pages, "twice") == {}


def at(book, name: str) -> str:
    return (book / name).as_uri()


def test_the_search_finds_zero_sum(visit, book):  # noqa: F811
    seen = visit(at(book, "search.html") + "?q=zero-sum")
    first = seen.page.locator("#search-results ul.search li a").first
    first.wait_for()
    found = seen.page.locator("#search-results ul.search li a").all_inner_texts()
    assert any("07 ·" in title for title in found), found
    first.click()
    seen.page.wait_for_load_state()
    assert "zero" in seen.page.locator("article").inner_text().lower()
    assert (seen.errors, seen.outside) == ([], [])


def test_the_search_field_of_a_phone_leads_to_the_hits_and_further_runs_are_left_out(visit, book):  # noqa: F811
    seen = visit(at(book, "notebooks/00_start_here.html"), width=390)
    seen.page.locator("button.search-button__button:visible, .search-button:visible").first.click()
    seen.page.locator("input[type=search]:visible").fill("sentence task")
    seen.page.keyboard.press("Enter")
    seen.page.locator("#search-results ul.search li a").first.wait_for()
    found = seen.page.locator("#search-results ul.search li a").all_inner_texts()
    assert "04 · Prehab on BERT and GLUE" in found
    assert not [title for title in found if "belonging" in title]


def test_a_hosted_book_shows_the_surroundings_of_a_hit(visit, book):  # noqa: F811
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=book)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen = visit(f"http://127.0.0.1:{server.server_port}/search.html?q=zero-sum")
        told = seen.page.locator("#search-results ul.search li p.context").first
        told.wait_for()
        assert "zero" in told.inner_text().lower()
        assert (seen.errors, seen.outside) == ([], [])
        server.shutdown()


def column(seen, table: str, number: int) -> list[str]:
    return seen.page.locator(f"{table} tbody tr:not(.group) > :nth-child({number})").all_inner_texts()


def test_the_verdicts_are_sorted_by_keys_as_numbers_and_back(visit, book):  # noqa: F811
    seen = visit(at(book, "index.html"))
    table = "table.verdicts"
    before = column(seen, table, 2)
    button = seen.page.get_by_role("button", name="verdict here")
    button.focus()
    head = seen.page.locator(f"{table} th", has=button)
    shares = []
    for direction in ("ascending", "descending"):
        seen.page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        cells = seen.page.locator(f"{table} tbody td:last-child")
        shares.append([*cells.evaluate_all("all => all.map((one) => parseFloat(one.dataset.sort))")])
    rising, falling = ([share for share in some if share == share] for some in shares)
    assert rising == sorted(rising) and falling == sorted(falling, reverse=True) and rising[0] < rising[-1]
    assert all(share != share for some in shares for share in some[len(rising) :])  # undecided ones last
    seen.page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert column(seen, table, 2) == before and len(before) > 50


TABLE = """<table><thead><tr><th></th><th>x</th></tr><tr><th>kind</th><th></th></tr></thead><tbody>
<tr><th rowspan="2">b</th><td>1,000</td></tr><tr><td>−2</td></tr><tr><th>a</th><td>nan</td></tr>
<tr><th>c</th><td>9.5 %</td></tr></tbody></table>"""


def test_a_table_with_two_heads_and_joined_cells_is_sorted_row_by_row(visit, book, tmp_path):  # noqa: F811
    script = (book / "_static" / "tables.js").as_uri()
    file = tmp_path / "table.html"
    file.write_text(f"<meta charset=utf-8><script src='{script}'></script><article>{TABLE}</article>", encoding="utf-8")
    seen = visit(file.as_uri())
    rows = "tbody tr"
    first = seen.page.locator(rows).all_inner_texts()
    seen.page.get_by_role("button", name="x").click()
    assert [row.split() for row in seen.page.locator(rows).all_inner_texts()] == [
        ["b", "−2"],
        ["c", "9.5", "%"],
        ["b", "1,000"],
        ["a", "nan"],
    ]
    seen.page.get_by_role("button", name="kind").click()
    assert [row.split()[0] for row in seen.page.locator(rows).all_inner_texts()] == ["a", "b", "b", "c"]
    seen.page.get_by_role("button", name="kind").click()
    seen.page.get_by_role("button", name="kind").click()
    assert seen.page.locator(rows).all_inner_texts() == first


def test_a_chapter_says_who_made_it_or_that_its_outputs_are_the_stored_ones(visit, book):  # noqa: F811
    made = visit(at(book, "notebooks/03_vit.html")).page.locator("dl.made").inner_text()
    assert [word in made for word in ("laptop", "7.0", "2.0 GB", "Some Processor, 1 thread", "0123456789")] == [
        True
    ] * 5
    stored = visit(at(book, "notebooks/02_rulers.html")).page.locator("dl.made").inner_text()
    assert "no run of the laptop profile" in stored


LIGHTNESS = """(one) => {
  for (let box = one; box; box = box.parentElement) {
    const colour = getComputedStyle(box).backgroundColor.match(/[\\d.]+/g).map(Number);
    if (colour[3] !== 0) return colour[0] + colour[1] + colour[2];
  }
  return 765;
}"""


@pytest.mark.parametrize("dark", [False, True])
def test_the_book_is_light_by_day_and_dark_by_night_also_in_its_tables(visit, book, dark):  # noqa: F811
    seen = visit(at(book, "notebooks/01_surrogates.html"), dark=dark)
    for part in ("article", "table.dataframe td", "div.cell_input pre"):
        light = seen.page.locator(part).first.evaluate(LIGHTNESS)
        assert light < 250 if dark else light > 650, part
    seen.page.locator("button.theme-switch-button:visible").click()


def test_the_chapters_can_be_reached_on_a_phone(visit, book):  # noqa: F811
    seen = visit(at(book, "index.html"), width=390)
    seen.page.locator("button.primary-toggle").click()
    seen.page.locator("dialog[open] a, .bd-sidebar-primary a").get_by_text("07 · Ranks that differ").first.click()
    seen.page.wait_for_load_state()
    assert "07 · Ranks that differ" in seen.page.locator("h1").inner_text()


def test_links_between_chapters_figures_and_pages_hold(book):
    targets = re.compile(r'<a [^>]*href="([^"#:]*)(?:#([^"]*))?"')
    dead = []
    for file in book.rglob("*.html"):
        for path, anchor in targets.findall(file.read_text(encoding="utf-8")):
            to = (file.parent / path).resolve() if path else file
            if not to.is_file() or (anchor and f'id="{anchor}"' not in to.read_text(encoding="utf-8")):
                dead.append((file.name, path, anchor))
    assert dead == []
