"""The browser of the other tests: found, skipped with a reason, deaf to other machines, and a witness of what goes wrong."""

import pytest

from tests import browser
from tests.browser import chromium, visit  # noqa: F401

PAGE = "<!doctype html><title>t</title><body style='margin:0'><div style='width:{width}px'>a</div>{more}</body>"


@pytest.fixture
def page_at(tmp_path):
    def write(more: str = "", width: int = 100) -> str:
        file = tmp_path / "page.html"
        file.write_text(PAGE.format(width=width, more=more), encoding="utf-8")
        return file.as_uri()

    return write


def test_without_chromium_the_reason_names_the_remedy(monkeypatch, tmp_path):
    pytest.importorskip("playwright")
    monkeypatch.delenv("PREHAB_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.executable() is None
    assert "apt-get install chromium" in browser.missing()


def test_a_named_chromium_wins_over_the_path_and_a_wrong_name_is_told(monkeypatch, tmp_path):
    pytest.importorskip("playwright")
    for name in ("mine", "chromium"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PREHAB_CHROMIUM", str(tmp_path / "mine"))
    assert browser.executable() == str(tmp_path / "mine")
    monkeypatch.setenv("PREHAB_CHROMIUM", str(tmp_path / "absent"))
    assert "absent is no program" in browser.missing()


@pytest.mark.parametrize(
    "address, leaves",
    [
        ("file:///a.html", False),
        ("data:text/plain,a", False),
        ("http://127.0.0.1:8888/lab", False),
        ("ws://localhost:8888/api", False),
        ("https://example.org/a.js", True),
        ("ws://example.org/a", True),
    ],
)
def test_what_leaves_the_machine(address, leaves):
    assert browser.leaves_the_machine(address) is leaves


def test_a_quiet_page_has_nothing_to_report(visit, page_at):  # noqa: F811
    seen = visit(page_at())
    assert seen.page.title() == "t"
    assert (seen.errors, seen.outside, seen.overflow()) == ([], [], 0)


def test_a_page_that_asks_another_machine_is_caught_and_gets_no_answer(visit, page_at):  # noqa: F811
    seen = visit(page_at("<script src='https://example.org/a.js'></script>"))
    assert seen.outside == ["https://example.org/a.js"]
    assert any("ERR_NAME_NOT_RESOLVED" in error for error in seen.errors)


def test_errors_of_scripts_and_missing_files_are_recorded(visit, page_at):  # noqa: F811
    seen = visit(page_at("<script>console.error('said'); throw new Error('thrown')</script><img src='gone.png'>"))
    assert [any(word in error for error in seen.errors) for word in ("said", "thrown", "gone.png")] == [True] * 3


def test_what_had_not_come_when_the_page_was_left_is_no_error(chromium, page_at):  # noqa: F811
    seen = browser.watch(chromium.new_page())
    seen.page.route("**/slow.png", lambda route: None)  # never answered
    with seen.page.expect_event("requestfailed") as left:
        seen.page.goto(page_at("<img src='slow.png'>"), wait_until="domcontentloaded")
        seen.page.goto("about:blank")
    assert left.value.url.endswith("slow.png")
    assert seen.errors == []
    seen.page.close()


def test_a_page_wider_than_the_phone_overflows(visit, page_at):  # noqa: F811
    assert visit(page_at(width=500), width=390).overflow() == 110
