import math

import pytest
import torch

from prehab_lib.tasks import language, prose
from prehab_lib.tasks.language import Corpus, open_language_task, prose_corpus, wikitext
from prehab_lib.tasks.perplexity import perplexity
from prehab_lib.tasks.small_llama import small_llama
from prehab_lib.tasks.windows import cut, drawn_windows, token_stream
from tests.tasks.helpers import opened_text as opened
from tests.tasks.helpers import refuses
from tests.text_files import parquet, sentence, text_folder, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_folders")


class Letters:
    """A tokenizer by hand: the code of every letter, behind a BOS of 1."""

    def __call__(self, text, **options):
        return {"input_ids": [1, *map(ord, text)]}


def ids_of(batches):
    return torch.cat([batch["input_ids"] for batch in batches])


def words(texts):
    return {" ".join(text.split()) for text in texts}


def test_texts_are_joined_by_blank_lines_and_get_one_bos():
    stream = token_stream(["ab", "", "c"], Letters())
    assert stream.tolist() == [1, *map(ord, "ab\n\n\n\nc")] and stream.dtype == torch.int64
    tokenizer = tiny_tokenizer()
    stream = token_stream(["the red house.", "a tree."], tokenizer)
    assert (stream == tokenizer.bos_token_id).sum() == 1
    assert tokenizer.decode(stream[1:]) == "the red house.\n\na tree."


def test_windows_cover_the_stream_once_and_drop_the_remainder():
    windows = cut(torch.arange(23), 5)
    assert windows.ids.flatten().tolist() == list(range(20)) and windows.ids.shape == (4, 5)
    assert (windows.dropped, windows.whole, len(windows)) == (3, 4, 4)
    batches = [batch["input_ids"] for batch in windows.batches(3)]
    assert list(map(len, batches)) == [3, 1] and torch.cat(batches).equal(windows.ids)
    few = cut(torch.arange(100), 10, most=4)
    assert few.ids[:, 0].tolist() == [0, 20, 50, 70] and few.whole == 10
    assert len(cut(torch.arange(100), 10, most=40)) == len(cut(torch.arange(100), 10, most=0)) == 10


def test_draws_are_windows_of_the_stream_and_as_ever():
    """The numbers of the notebooks rest on this order of places."""
    stream, generator = torch.arange(50) + 100, torch.Generator().manual_seed(0)
    draws = drawn_windows(stream, window=8, batch=3, seed=0, count=100)
    places = torch.cat([torch.randint(43, (3, 1), generator=generator) for _ in range(100)])
    ids = ids_of(draws)
    assert ids.equal(100 + places + torch.arange(8)) and ids.equal(ids_of(draws)) and len(draws) == 100
    assert set(ids[:, 0].tolist()) == set(range(100, 143))  # every place, the last one too
    assert next(iter(drawn_windows(torch.arange(5), 5, 2, 0, 1)))["input_ids"].tolist() == [list(range(5))] * 2


def test_no_paragraph_of_one_part_is_in_another():
    corpus = prose_corpus()
    parts = [corpus.train, corpus.validation, *corpus.tests.values()]
    assert list(corpus.tests) == ["documentation", "comments"] and prose.checksum() in corpus.source
    for i, one in enumerate(parts):
        assert all(text.strip() for text in one) and len(words(one)) == len(one)
        assert not any(words(one) & words(other) for other in parts[i + 1 :])
    sizes = [sum(map(len, part)) for part in parts]
    assert sizes[0] > 1_000_000 and min(sizes[1:]) > 40_000  # enough for a small model


def test_scored_text_is_of_held_out_modules_only(monkeypatch):
    """Texts that say which module they are of arrive where the module belongs."""
    modules = ["json", "email", "decimal", "inspect", "turtle", "topics", "bisect", "heapq", "fnmatch", "csv"]
    texts = tuple((module, module, f"About {module}.\n \nMore of {module}.") for module in modules)
    monkeypatch.setattr(prose, "texts", lambda: texts)
    monkeypatch.setattr(prose, "checksum", lambda: "0" * 16)
    monkeypatch.setattr(prose, "comments", lambda part: (f"A comment of a {part} module.", "About json."))
    corpus = prose_corpus.__wrapped__()
    found = {"train": corpus.train, "validation": corpus.validation, "test": corpus.tests["documentation"]}
    for part, paragraphs in found.items():
        wanted = [m for m in modules if prose.part_of(m) == part]
        assert paragraphs == tuple(text for m in wanted for text in (f"About {m}.", f"More of {m}.")), part
    assert corpus.tests["comments"] == ("A comment of a test module.",)


def test_wikitext_keeps_rows_and_blank_lines(tmp_path):
    for name in ("wikitext-2-raw-v1", "wikitext-2-v1"):
        corpus = wikitext(name, str(text_folder(tmp_path, 10, name)))
        assert corpus.train[:3] == (sentence(0) + "\n", "", sentence(1) + "\n") and len(corpus.train) == 20
        assert (corpus.validation[0], corpus.tests["WikiText-2"][0]) == (sentence(1000) + "\n", sentence(2000) + "\n")
        assert corpus.tests["C4"] == tuple(sentence(9000 + i) for i in range(10))
        assert name in corpus.source and "10 held-out documents of C4" in corpus.source
    text_folder(tmp_path, 4, "mine")
    corpus = wikitext("wikitext-2-raw-v1", str(tmp_path), dataset=str(tmp_path / "mine"))
    assert list(corpus.tests) == ["own text", "C4"] and len(corpus.train) == 8


def test_rows_without_text_and_missing_data_are_named(tmp_path):
    name, root = "wikitext-2-raw-v1", str(tmp_path)
    refuses("'wikitext-2-raw-v1' is not at .*put it there", wikitext, name, root, error=FileNotFoundError)
    text_folder(tmp_path, 4)
    parquet(tmp_path / name, "validation", text=["one", None])
    refuses("has a row without text in its part 'validation'", wikitext, name, root)


def test_the_embedded_task(monkeypatch):
    """On a tenth of its paragraphs, for speed."""
    whole = prose_corpus()
    tests = {column: texts[::10] for column, texts in whole.tests.items()}
    thin = Corpus(whole.train[::10], whole.validation, tests, whole.source)
    monkeypatch.setattr(language, "prose_corpus", lambda: thin)
    task = open_language_task("prose", 64, 4, test_windows=20)
    assert list(task.tests) == ["documentation", "comments"] and len(task.tokenizer) == 1000
    assert all(windows.ids.shape == (20, 64) and windows.whole > 50 for windows in task.tests.values())
    assert len(task.training) > 30_000 and 0 < len(task.chosen_on) <= language.CHOSEN_ON
    assert all(1 < value < len(task.tokenizer) / 2 for value in task.unigram().values())


def test_each_part_is_of_its_own_text_and_draws_repeat_themselves(tmp_path):
    """Every part is written with a letter of its own."""
    tokenizer = tiny_tokenizer()
    for split, letter in (("train", "a"), ("validation", "b"), ("test", "c")):
        parquet(tmp_path / "sets" / "wikitext-2-raw-v1", split, text=[letter * 5] * 200)
    parquet(tmp_path / "sets" / "c4", "heldout", text=["d" * 5] * 200)
    task = open_language_task("wikitext2", 16, 2, tokenizer, data_root=str(tmp_path / "sets"))
    for draw in (task.train, task.calibration, task.validation):
        assert ids_of(draw(0, 3)).shape == (6, 16) and not ids_of(draw(0, 3)).equal(ids_of(draw(1, 3)))
    assert not ids_of(task.train(0, 3)).equal(ids_of(task.calibration(0, 3)))
    for letter, ids in (
        ("a", ids_of(task.train(0, 4))),
        ("a", ids_of(task.calibration(0, 4))),
        ("b", ids_of(task.validation(0, 4))),
        ("b", task.chosen_on.ids),
        ("c", task.tests["WikiText-2"].ids),
        ("d", task.tests["C4"].ids),
    ):
        assert set("".join(tokenizer.decode(ids.flatten(), skip_special_tokens=True).split())) == {letter}


def test_scores_are_perplexities_a_column_and_unigrams_are_counted(tmp_path):
    task = opened(tmp_path)
    model = small_llama(300, depth=1, width=16, heads=2, kv_heads=1, positions=16)
    task.check(model)
    assert task.scores(model) == {name: perplexity(model, windows) for name, windows in task.tests.items()}
    assert list(task.scores(model)) == ["WikiText-2", "C4"]
    tokens = task.training.tolist()
    total = len(tokens) + len(task.tokenizer)
    for name, windows in task.tests.items():
        nats = [-math.log((tokens.count(t) + 1) / total) for row in windows.ids.tolist() for t in row[1:]]
        assert task.unigram()[name] == pytest.approx(math.exp(sum(nats) / len(nats)))


def test_bos_can_stand_in_front_of_each_window(tmp_path):
    """It is one of the window's tokens, nobody's text is lost, and the protocol says so."""
    tokenizer, plain, led = tiny_tokenizer(), opened(tmp_path), opened(tmp_path, bos=True)
    for column, windows in led.tests.items():
        assert windows.ids.shape[1] == 16 and (windows.ids[:, 0] == tokenizer.bos_token_id).all()
        text = token_stream(wikitext("wikitext-2-raw-v1", str(tmp_path / "sets")).tests[column], tokenizer)[1:]
        assert windows.ids[:, 1:].flatten().equal(text[: 15 * len(windows)])
        assert windows.whole == len(text) // 15 and windows.dropped == len(text) % 15
    for drawn in (led.train(0, 3), led.calibration(0, 3), led.validation(0, 3)):
        ids = ids_of(drawn)
        assert ids.shape == (6, 16) and (ids == tokenizer.bos_token_id).sum(1).eq(1).all()
    assert "BOS in front of each window" in led.protocol and "BOS in front of the text" in plain.protocol
    tokenizer.bos_token = None
    refuses("no BOS token", lambda: opened(tmp_path, tokenizer, bos=True))


def test_the_protocol_says_what_was_done(tmp_path):
    task = opened(tmp_path, test_windows=3)
    windows, c4 = task.tests["WikiText-2"], task.tests["C4"]
    scored = f"WikiText-2 3 of {windows.whole} windows ({windows.dropped} tokens dropped), C4 3 of {c4.whole} windows"
    source = "the test split of wikitext-2-raw-v1 and 40 held-out documents of C4"
    cut = "non-overlapping windows of 16 tokens"
    for said in ("texts joined by blank lines, BOS in front of the text", cut, "remainder dropped", scored, source):
        assert said in task.protocol
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    assert "blank lines, no BOS, non" in opened(tmp_path, tokenizer).protocol


def test_without_a_tokenizer_one_is_trained_on_the_training_part(tmp_path):
    text_folder(tmp_path, 20)
    parquet(tmp_path / "wikitext-2-raw-v1", "test", text=["zebra zebra zebra"] * 40)
    task = open_language_task("wikitext2", 16, 2, data_root=str(tmp_path), vocabulary=290)
    assert len(task.tokenizer) == 290 and "Ġholds" in task.tokenizer.get_vocab()
    assert not any("zebra" in piece for piece in task.tokenizer.get_vocab())


def test_bad_input_is_one_sentence(tmp_path):
    refuses("task = 'ptb' is not known: choose one of prose, wikitext2, wikitext2-v1", open_language_task, "ptb", 16, 2)
    for wrong, said in (
        ({"window": 1}, "window = 1: give a whole number, 2 or larger"),
        ({"batch": 0}, "batch = 0"),
        ({"test_windows": -1}, "test_windows = -1"),
        ({"window": 9999}, "text has [0-9]+ tokens, fewer than one window of 9999"),
    ):
        refuses(said, opened, tmp_path, **wrong)
    said = "the text 'C4' has 4 tokens, fewer than one window of 5: give more text"
    refuses(said, cut, torch.arange(4), 5, what="the text 'C4'")
    refuses("the text to draw from has 4 tokens, fewer than one window", drawn_windows, torch.arange(4), 5, 1, 0, 1)
    for nothing in ([], ["", " \n"]):
        refuses("there is no text to tokenize", token_stream, nothing, Letters())
    task = opened(tmp_path)
    foreign, small = (small_llama(size, 1, 16, 2, 1, positions=places) for size, places in ((270, 16), (300, 8)))
    refuses("outside the model's vocabulary of 270: the tokenizer belongs to another", task.check, foreign)
    refuses("window = 16 is longer than the 8 positions", task.check, small)
    assert int(task.training.max()) >= 270
