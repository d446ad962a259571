import subprocess
import sys

import pytest

from prehab_lib.tasks import prose, prose_tasks, sources
from prehab_lib.tasks.prose_tasks import PROSE


def texts_of(name, part):
    return {text for column in prose_tasks.rows(name, part).texts for text in column}


def test_no_module_and_no_sentence_is_in_two_parts():
    modules = {part: {entry.module for entry in prose.documentation(part)} for part in prose.PARTS}
    sentences = {part: set(prose.sentences(part)) for part in prose.PARTS}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not modules[one] & modules[other] and not sentences[one] & sentences[other]
    assert len(sentences["train"]) > 1000 and len(sentences["test"]) > 200


def test_python_twins_of_a_module_share_its_part():
    assert prose.part_of("_pyio") == prose.part_of("io") and prose.part_of("_pydecimal") == prose.part_of("decimal")
    assert prose.part_of("_weakrefset") == prose.part_of("weakrefset")
    assert prose.part_of(prose.TOPICS) == "train"


def test_sentences_are_plain_lower_case_words():
    for part in prose.PARTS:
        for sentence in prose.sentences(part):
            assert sentence == " ".join(sentence.split()) == sentence.lower()
            assert prose.WORDS[0] <= len(sentence.split()) <= prose.WORDS[1] and len(set(sentence.split())) > 2


def test_a_docstring_by_hand():
    text = """Return the *value* of `key`, or a default one.

    >>> table.get("No sentence of an example counts here.")

    - An item of a list is no sentence of prose either.

    Too short. Does the next sentence count as well? Not_this x[0] one() as_it is_code. This has no end
    """
    assert prose._sentences(text) == (
        "return the value of key or a default one",
        "does the next sentence count as well",
    )


def test_the_library_is_read_and_never_imported():
    script = """
import sys
from prehab_lib import prose
read = {module for module, _, _ in prose.texts()}
assert {"email", "json", prose.TOPICS} <= read
print(sorted({"antigravity", "this", "mailbox", "turtle", "pydoc_data"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_checksum_is_of_the_text(monkeypatch):
    before = prose.checksum()
    assert len(before) == 16
    changed = (("mod", "mod.f", "Another text."), *prose.texts()[1:])
    monkeypatch.setattr(prose, "texts", lambda: changed)
    prose.checksum.cache_clear()
    assert prose.checksum() != before
    prose.checksum.cache_clear()


def test_an_unknown_part_or_task_and_a_python_without_sources_are_named(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="part = 'dev' is not known: choose one of train, validation, test"):
        prose.documentation("dev")
    with pytest.raises(ValueError, match="task = 'irony' is no embedded task: choose one of acceptability"):
        prose_tasks.rows("irony", "train")
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(sources, "entries", sources.entries.__wrapped__)
    with pytest.raises(FileNotFoundError, match="has no library sources at"):
        prose.texts.__wrapped__()


@pytest.mark.parametrize("name", PROSE)
def test_no_text_that_is_scored_was_trained_on(name):
    trained, scored = texts_of(name, "train"), texts_of(name, "test")
    whole = set(prose.sentences("train"))
    assert not whole & scored and not set(prose.sentences("test")) & trained
    pairs = [set(zip(*prose_tasks.rows(name, part).texts, strict=True)) for part in ("train", "test")]
    assert not pairs[0] & pairs[1]


@pytest.mark.parametrize("name", PROSE)
def test_rows_are_the_same_at_every_call_and_fit_their_metric(name):
    rows = prose_tasks.rows(name, "validation")
    prose_tasks.rows.cache_clear()
    assert prose_tasks.rows(name, "validation") == rows
    if PROSE[name].labels:
        assert set(rows.labels) == {0, 1}
        assert sum(rows.labels) / len(rows) == pytest.approx(1 / 3 if PROSE[name].metric == "f1" else 1 / 2)
    else:
        assert min(rows.labels) >= 0 and max(rows.labels) <= 1 and len(set(rows.labels)) > 20


def test_the_metrics_of_glue_have_one_task_each():
    assert sorted(task.metric for task in PROSE.values()) == ["accuracy", "f1", "matthews", "spearman"]


def test_acceptability_keeps_the_words():
    (texts,), labels = (rows := prose_tasks.rows("acceptability", "validation")).texts, rows.labels
    for written, shuffled in zip(texts[::2], texts[1::2], strict=True):
        assert sorted(written.split()) == sorted(shuffled.split()) and written != shuffled
    assert labels[:4] == (1, 0, 1, 0)


def test_pairs_keep_their_promise():
    passages, rests = (rows := prose_tasks.rows("belonging", "validation")).texts
    for passage, rest, label in zip(passages, rests, rows.labels, strict=True):
        words = passage.split()
        assert label == 0 or all(word in words for word in rest.split())
    for sentence, edited, share in zip(
        *prose_tasks.rows("similarity", "validation").texts,
        prose_tasks.rows("similarity", "validation").labels,
        strict=True,
    ):
        same = [one == other for one, other in zip(sentence.split(), edited.split(), strict=True)]
        assert share == pytest.approx(sum(same) / len(same))
