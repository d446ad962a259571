import ast
import subprocess
import sys

import pytest

from prehab_lib.tasks import prose, prose_tasks
from prehab_lib.tasks.prose_tasks import PROSE
from tests.tasks.helpers import refuses


def test_docstrings_and_comments_come_in_the_order_of_the_modules(tmp_path, monkeypatch):
    """Of a library of two modules, one for each of two parts."""
    (tmp_path / "json" / "tests").mkdir(parents=True)
    (tmp_path / "json" / "__init__.py").write_text('"""About json."""\ndef load(file):\n    """Load it."""\n')
    (tmp_path / "json" / "tests" / "one.py").write_text('"""A test is no documentation."""\n')
    (tmp_path / "csv.py").write_text('"""About csv."""\n# Everybody reads this comment here.\n')
    (tmp_path / "unknown.py").write_text('"""No module of the standard library."""\n')
    monkeypatch.setattr(prose.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(prose, "part_of", {"csv": "train", "json": "test"}.get)
    assert [tuple(entry) for entry in prose.docstrings.__wrapped__()] == [
        ("csv", "csv", "About csv.", None),
        ("json", "json.__init__", "About json.", None),
        ("json", "json.__init__.load", "Load it.", "file"),
    ]
    assert prose.comments.__wrapped__("train") == ("Everybody reads this comment here.",)
    assert prose.comments.__wrapped__("test") == ()


def test_no_module_and_no_sentence_is_in_two_parts():
    modules = {part: {module for module, _ in prose.documentation(part)} for part in prose.PARTS}
    sentences = {part: set(prose.sentences(part)) for part in prose.PARTS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not modules[one] & modules[other] and not sentences[one] & sentences[other]
    assert len(sentences["train"]) > 1000 and len(sentences["test"]) > 200
    for sentence in set.union(*sentences.values()):
        words = sentence.split()
        assert sentence == " ".join(words) == sentence.lower()
        assert prose.WORDS[0] <= len(words) <= prose.WORDS[1] and len(set(words)) > 2, sentence
    for one, other in (("_pyio", "io"), ("_pydecimal", "decimal"), ("_weakrefset", "weakrefset")):
        assert prose.part_of(one) == prose.part_of(other), one
    assert prose.part_of(prose.TOPICS) == "train"


def test_a_docstring_by_hand():
    text = """Return the *value* of `key`, or a default one.

    >>> table.get("No sentence of an example counts here.")

    - An item of a list is no sentence of prose either.

    Too short. Does the next sentence count as well? Not_this x[0] one() as_it is_code. This has no end
    """
    first, second = "return the value of key or a default one", "does the next sentence count as well"
    assert prose._sentences(text) == (first, second)


def test_comments_by_hand(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        '#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n"""\n# This is inside a docstring here.\n"""\n'
        "# The first line of a comment\n# goes on in a second one.\n#\n# A new paragraph begins here now.\n"
        "x = 1  # this one shares its line\n# too short\n# ------------------\n"
        "def f():\n    # Indented comments count as well.\n    return x\n# type: this is for a checker\n"
    )
    assert list(prose._comments_in(source)) == [
        "The first line of a comment\ngoes on in a second one.",
        "A new paragraph begins here now.",
        "Indented comments count as well.",
    ]


def test_a_question_by_hand():
    source = '''
class Shelf:
    def put(self, book, *, at=0):
        """Put a book
        on the shelf.  Nothing is returned.

        A second paragraph."""
    def _odd(self):
        """Short."""
async def read(*titles):
    """Read titles in order"""
    def inner(page):
        """Inside a function it is nobody's question."""
def silent(): pass
'''
    assert list(prose._asked(prose._documented(ast.parse(source), ("library",)))) == [
        ("What does library.Shelf.put(self, book, *, at=0) do?\n", "Put a book on the shelf."),
        ("What does library.read(*titles) do?\n", "Read titles in order"),
    ]


def test_questions_are_split_by_module():
    parts = {part: prose.questions(part) for part in ("train", "validation")}
    assert len(parts["train"]) > 2000 and len(parts["validation"]) > 100
    asked = dict(parts["train"])["What does bisect.insort_right(a, x, lo=0, hi=None, *, key=None) do?\n"]
    assert asked == "Insert item x in list a, and keep it sorted assuming a is sorted."
    for part, pairs in parts.items():
        assert all(prose.part_of(question.split()[2].split(".")[0]) == part for question, _ in pairs)
    assert not {a for _, a in parts["train"]} & {a for _, a in parts["validation"]}


def test_the_library_is_read_and_never_imported():
    script = """
import sys
from prehab_lib.tasks import prose
read = {module for module, _, _ in prose.texts()}
assert {"email", "json", prose.TOPICS} <= read and len(prose.comments("test")) > 500
print(sorted({"antigravity", "this", "mailbox", "turtle", "pydoc_data", "telnetlib"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_part_or_task_and_a_python_without_sources_are_named(monkeypatch, tmp_path):
    for read in (prose.documentation, prose.comments, prose.questions):
        refuses("part = 'dev' is not known: choose one of train, validation, test", read, "dev")
    refuses("task = 'irony' is not known: choose one of acceptability", prose_tasks.rows, "irony", "train")
    monkeypatch.setattr(prose.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(prose, "docstrings", prose.docstrings.__wrapped__)
    refuses("has no library sources at", prose.texts.__wrapped__, error=FileNotFoundError)


def test_no_text_that_is_scored_was_trained_on_and_rows_fit_their_metric():
    assert sorted(task.metric for task in PROSE.values()) == ["accuracy", "f1", "matthews", "spearman"]
    for name, task in PROSE.items():
        train, test = (prose_tasks.rows(name, part).texts for part in ("train", "test"))
        trained, scored = ({text for column in texts for text in column} for texts in (train, test))
        assert not set(prose.sentences("train")) & scored and not set(prose.sentences("test")) & trained, name
        assert not set(zip(*train, strict=True)) & set(zip(*test, strict=True)), name
        rows = prose_tasks.rows(name, "validation")
        assert prose_tasks.rows.__wrapped__(name, "validation") == rows
        assert min(rows.labels) >= 0 and max(rows.labels) <= 1, name
        if task.labels:
            assert sum(rows.labels) / len(rows) == pytest.approx(1 / 3 if task.metric == "f1" else 1 / 2), name
        assert (set(rows.labels) == {0, 1}) if task.labels else (len(set(rows.labels)) > 20), name


def test_rows_keep_their_promise():
    names = "acceptability", "belonging", "similarity"
    acceptability, belonging, similarity = (prose_tasks.rows(name, "validation") for name in names)
    (texts,) = acceptability.texts
    for written, shuffled in zip(texts[::2], texts[1::2], strict=True):
        assert sorted(written.split()) == sorted(shuffled.split()) and written != shuffled
    assert acceptability.labels[:4] == (1, 0, 1, 0)
    for passage, rest, label in zip(*belonging.texts, belonging.labels, strict=True):
        assert label == 0 or set(rest.split()) <= set(passage.split())
    for sentence, edited, share in zip(*similarity.texts, similarity.labels, strict=True):
        same = [one == other for one, other in zip(sentence.split(), edited.split(), strict=True)]
        assert share == pytest.approx(sum(same) / len(same))
