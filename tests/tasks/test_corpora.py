import sys

import pytest

from prehab_lib.tasks import comments, corpora, prose
from prehab_lib.tasks.corpora import prose_corpus, wikitext
from tests.text_files import parquet, sentence, text_folder

pytestmark = pytest.mark.usefixtures("own_folders")


def words(texts):
    return {" ".join(text.split()) for text in texts}


def test_no_paragraph_of_one_part_is_in_another():
    corpus = prose_corpus()
    parts = [corpus.train, corpus.validation, *corpus.tests.values()]
    assert list(corpus.tests) == ["documentation", "comments"]
    for i, one in enumerate(parts):
        assert all(text.strip() for text in one) and len(words(one)) == len(one)
        assert not any(words(one) & words(other) for other in parts[i + 1 :])


def test_there_is_enough_text_for_a_small_model():
    corpus = prose_corpus()
    sizes = [sum(map(len, part)) for part in (corpus.train, corpus.validation, *corpus.tests.values())]
    assert sizes[0] > 1_000_000 and min(sizes[1:]) > 40_000
    assert corpus.checksum == prose_corpus().checksum and prose.checksum() in corpus.source


def test_scored_text_is_of_held_out_modules_only(monkeypatch):
    """Texts that say which module they are of arrive where the module belongs."""
    modules = ["json", "email", "decimal", "inspect", "turtle", "topics", "bisect", "heapq", "fnmatch", "csv"]
    texts = tuple((module, module, f"About {module}.\n \nMore of {module}.") for module in modules)
    monkeypatch.setattr(prose, "texts", lambda: texts)
    monkeypatch.setattr(prose, "checksum", lambda: "0" * 16)
    monkeypatch.setattr(corpora, "comments", lambda part: (f"A comment of a {part} module.", "About json."))
    corpus = prose_corpus.__wrapped__()
    for part, found in (
        ("train", corpus.train),
        ("validation", corpus.validation),
        ("test", corpus.tests["documentation"]),
    ):
        wanted = [m for m in modules if prose.part_of(m) == part]
        assert found == tuple(text for m in wanted for text in (f"About {m}.", f"More of {m}."))
    assert corpus.tests["comments"] == ("A comment of a test module.",)


def test_comments_by_hand(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        '#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n"""\n# This is inside a docstring here.\n"""\n'
        "# The first line of a comment\n# goes on in a second one.\n#\n# A new paragraph begins here now.\n"
        "x = 1  # this one shares its line\n# too short\n# ------------------\n"
        "def f():\n    # Indented comments count as well.\n    return x\n# type: this is for a checker\n"
    )
    assert list(comments._blocks(source)) == [
        "The first line of a comment\ngoes on in a second one.",
        "A new paragraph begins here now.",
        "Indented comments count as well.",
    ]


def test_comments_read_held_out_modules_and_import_none():
    before = set(sys.modules)
    assert len(comments.comments("test")) > 500
    assert not {"turtle", "distutils", "telnetlib"} & (set(sys.modules) - before)
    with pytest.raises(ValueError, match="part = 'dev' is not known: choose one of train, validation, test"):
        comments.comments("dev")


@pytest.mark.parametrize("name", ["wikitext-2-raw-v1", "wikitext-2-v1"])
def test_wikitext_keeps_rows_and_blank_lines(tmp_path, name):
    corpus = wikitext(name, str(text_folder(tmp_path, 10, name)))
    assert corpus.train[:3] == (sentence(0) + "\n", "", sentence(1) + "\n") and len(corpus.train) == 20
    assert corpus.validation[0] == sentence(1000) + "\n"
    assert corpus.tests["WikiText-2"][0] == sentence(2000) + "\n"
    assert corpus.tests["C4"] == tuple(sentence(9000 + i) for i in range(10))
    assert name in corpus.source and "10 held-out documents of C4" in corpus.source


def test_a_folder_of_your_own_and_no_second_column(tmp_path):
    text_folder(tmp_path, 4, "mine")
    corpus = wikitext("wikitext-2-raw-v1", dataset=str(tmp_path / "mine"), other=None)
    assert list(corpus.tests) == ["own text"]


def test_other_text_has_another_checksum(tmp_path):
    one = wikitext("wikitext-2-raw-v1", str(text_folder(tmp_path / "a", 4)), other=None)
    other = wikitext("wikitext-2-raw-v1", str(text_folder(tmp_path / "b", 5)), other=None)
    assert one.checksum != other.checksum


def test_rows_without_text_and_missing_data_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="'wikitext-2-raw-v1' is not at .*put it there"):
        wikitext("wikitext-2-raw-v1", str(tmp_path))
    with pytest.raises(ConnectionError, match="'Salesforce/wikitext' could not be fetched"):
        wikitext("wikitext-2-raw-v1")
    text_folder(tmp_path, 4)
    parquet(tmp_path / "wikitext-2-raw-v1", "validation", text=["one", None])
    with pytest.raises(ValueError, match="has a row without text in its part 'validation'"):
        wikitext("wikitext-2-raw-v1", str(tmp_path))
