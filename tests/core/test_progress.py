import sys

from prehab_lib.progress import progress


def test_silent_when_nobody_watches(monkeypatch):
    items = [1, 2]
    assert progress(items, "work") is items
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("PREHAB_RUN_DIR", "somewhere")
    assert progress(items, "work") is items


def test_a_bar_for_a_person_at_a_terminal(monkeypatch):
    for name in ("PYTEST_CURRENT_TEST", "PREHAB_RUN_DIR", "PREHAB_QUIET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress([1, 2], "work")
    assert list(bar) == [1, 2] and "tqdm" in type(bar).__name__
