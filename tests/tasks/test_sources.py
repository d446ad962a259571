import gc
import json

import pytest

from prehab_lib.tasks import remember, sources


@pytest.fixture
def small_library(tmp_path, monkeypatch, own_folders):
    """A library of two modules."""
    library = tmp_path / "library"
    (library / "json" / "tests").mkdir(parents=True)
    (library / "json" / "__init__.py").write_text('"""About json."""\ndef load(file):\n    """Load it."""\n')
    (library / "json" / "tests" / "one.py").write_text('"""A test is no documentation."""\n')
    (library / "csv.py").write_text('"""About csv."""\n')
    (library / "unknown.py").write_text('"""No module of the standard library."""\n')
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(library))
    return library


def read():
    return sources.entries.__wrapped__()


def test_docstrings_in_the_order_of_the_modules(small_library):
    assert [tuple(entry) for entry in read()] == [
        ("csv", "csv", "About csv.", None),
        ("json", "json.__init__", "About json.", None),
        ("json", "json.__init__.load", "Load it.", "file"),
    ]


def test_a_second_reading_parses_nothing(small_library, monkeypatch):
    first = read()
    monkeypatch.setattr(sources.ast, "parse", lambda source: pytest.fail("parsed again"))
    assert read() == first


def test_a_changed_file_is_read_again(small_library):
    read()
    (small_library / "csv.py").write_text('"""About commas."""\n')
    assert read()[0].text == "About commas."


def test_one_name_keeps_what_was_wanted_apart(small_library):
    def name_of(file, parts):
        return [parts[0]]

    assert sources.read_once("names", name_of, lambda module: module == "csv") == ["csv"]
    assert sources.read_once("names", name_of, lambda module: module == "json") == ["json"]


def test_a_damaged_entry_is_made_again(own_folders):
    assert remember.remembered("list", 1, lambda: [1, 2]) == [1, 2]
    (file,) = remember.cache_folder().rglob("*.json")
    file.write_text("[1, ")
    assert remember.remembered("list", 1, lambda: [3]) == [3] == json.loads(file.read_text())


def test_where_nothing_can_be_kept_the_answer_comes_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("PREHAB_CACHE", str(tmp_path / "file"))
    assert remember.remembered("list", 1, lambda: [1]) == [1]
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.parametrize("on", [True, False])
def test_cycles_are_not_searched_for_while_files_are_parsed_and_as_before_afterwards(small_library, on):
    seen = []

    def read(file, parts):
        seen.append(gc.isenabled())
        if len(seen) == 3:
            raise ValueError("unreadable")
        return []

    before = gc.isenabled()
    (gc.enable if on else gc.disable)()
    try:
        sources.read_once("nothing", read, lambda module: True)
        assert seen == [False, False] and gc.isenabled() == on
        with pytest.raises(ValueError, match="unreadable"):
            sources.read_once("something", read, lambda module: True)
        assert gc.isenabled() == on
    finally:
        (gc.enable if before else gc.disable)()
