import math

import pytest
import torch

from prehab_lib.tasks import corpora, language
from prehab_lib.tasks.bpe import prose_bpe, tokenizer_of
from prehab_lib.tasks.corpora import Corpus, prose_corpus
from prehab_lib.tasks.language import open_language_task
from prehab_lib.tasks.perplexity import language_loss, perplexity
from prehab_lib.tasks.small_llama import small_llama
from tests.text_files import causal_model, parquet, text_folder, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("own_folders")


def opened(tmp_path, tokenizer=None, window=16, batch=2, rows=40, **options):
    text_folder(tmp_path / "sets", rows)
    tokenizer = tokenizer or tiny_tokenizer()
    return open_language_task("wikitext2", window, batch, tokenizer, data_root=str(tmp_path / "sets"), **options)


def ids_of(batches):
    return torch.cat([batch["input_ids"] for batch in batches])


def test_the_embedded_task(monkeypatch):
    """On a tenth of its paragraphs, for speed."""
    whole = prose_corpus()
    tests = {column: texts[::10] for column, texts in whole.tests.items()}
    thin = Corpus("prose", whole.train[::10], whole.validation, tests, whole.source)
    for place in (corpora, language):
        monkeypatch.setattr(place, "prose_corpus", lambda: thin)
    monkeypatch.setattr(language, "prose_bpe", prose_bpe.__wrapped__)
    task = open_language_task("prose", 64, 4, test_windows=20)
    assert list(task.tests) == ["documentation", "comments"] and len(task.tokenizer) == 1000
    assert all(windows.ids.shape == (20, 64) and windows.whole > 50 for windows in task.tests.values())
    assert len(task.training) > 30_000 and 0 < len(task.chosen_on) <= language.CHOSEN_ON
    uniform = len(task.tokenizer)
    assert all(1 < value < uniform / 2 for value in task.unigram().values())


def test_draws_repeat_themselves_and_differ_by_purpose(tmp_path):
    task = opened(tmp_path)
    draws = {name: getattr(task, name) for name in ("train", "calibration", "validation")}
    for draw in draws.values():
        assert ids_of(draw(0, 3)).equal(ids_of(draw(0, 3))) and ids_of(draw(0, 3)).shape == (6, 16)
        assert not ids_of(draw(0, 3)).equal(ids_of(draw(1, 3)))
    assert not ids_of(draws["train"](0, 3)).equal(ids_of(draws["calibration"](0, 3)))


def test_each_part_is_of_its_own_text(tmp_path):
    """Every part is written with a letter of its own."""
    tokenizer = tiny_tokenizer()
    for split, letter in (("train", "a"), ("validation", "b"), ("test", "c")):
        parquet(tmp_path / "sets" / "wikitext-2-raw-v1", split, text=[letter * 5] * 200)
    parquet(tmp_path / "sets" / "c4", "heldout", text=["d" * 5] * 200)
    task = open_language_task("wikitext2", 16, 2, tokenizer, data_root=str(tmp_path / "sets"))
    found = {
        "train": ids_of(task.train(0, 4)),
        "calibration": ids_of(task.calibration(0, 4)),
        "validation": ids_of(task.validation(0, 4)),
        "chosen_on": task.chosen_on.ids,
        "WikiText-2": task.tests["WikiText-2"].ids,
        "C4": task.tests["C4"].ids,
    }
    letters = {
        "train": "a",
        "calibration": "a",
        "validation": "b",
        "chosen_on": "b",
        "WikiText-2": "c",
        "C4": "d",
    }
    for name, ids in found.items():
        assert set("".join(tokenizer.decode(ids.flatten(), skip_special_tokens=True).split())) == {letters[name]}


def test_scores_are_perplexities_a_column(tmp_path):
    task = opened(tmp_path)
    model = small_llama(300, depth=1, width=16, heads=2, kv_heads=1, positions=16)
    assert task.scores(model) == {name: perplexity(model, windows) for name, windows in task.tests.items()}
    assert list(task.scores(model)) == ["WikiText-2", "C4"]


def test_unigram_by_hand(tmp_path):
    task = opened(tmp_path)
    counts = {}
    for token in task.training.tolist():
        counts[token] = counts.get(token, 0) + 1
    total = len(task.training) + len(task.tokenizer)
    for name, windows in task.tests.items():
        nats = [-math.log((counts.get(t, 0) + 1) / total) for row in windows.ids.tolist() for t in row[1:]]
        assert task.unigram()[name] == pytest.approx(math.exp(sum(nats) / len(nats)))


def test_the_protocol_says_what_was_done(tmp_path):
    task = opened(tmp_path, test_windows=3)
    windows, c4 = task.tests["WikiText-2"], task.tests["C4"]
    for said in (
        "texts joined by blank lines, BOS in front of the text",
        "non-overlapping windows of 16 tokens",
        "remainder dropped",
        f"WikiText-2 3 of {windows.whole} windows ({windows.dropped} tokens dropped)",
        f"C4 3 of {c4.whole} windows",
        "the test split of wikitext-2-raw-v1 and 40 held-out documents of C4",
    ):
        assert said in task.protocol
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    assert "blank lines, no BOS, non" in opened(tmp_path, tokenizer).protocol


def test_bos_before_drawn_windows_only_where_wanted(tmp_path):
    plain, led = opened(tmp_path), opened(tmp_path, bos=True)
    bos = led.tokenizer.bos_token_id
    for draw in (led.train, led.calibration, led.validation):
        assert (ids_of(draw(0, 3))[:, 0] == bos).all()
    assert (ids_of(plain.calibration(0, 3)) == bos).sum() <= 1
    assert led.tests["C4"].ids.equal(plain.tests["C4"].ids)
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="bos = True: this tokenizer has no BOS token"):
        opened(tmp_path, tokenizer, bos=True)


def test_without_a_tokenizer_one_is_trained_on_the_training_part(tmp_path):
    text_folder(tmp_path, 20)
    parquet(tmp_path / "wikitext-2-raw-v1", "test", text=["zebra zebra zebra"] * 40)
    task = open_language_task("wikitext2", 16, 2, data_root=str(tmp_path), vocabulary=290)
    assert len(task.tokenizer) == 290 and "Ġholds" in task.tokenizer.get_vocab()
    assert not any("zebra" in piece for piece in task.tokenizer.get_vocab())


def test_a_real_checkpoint_offline(tmp_path):
    """Tokenizer and model of one folder: the perplexity of an untrained model is about its vocabulary's size."""
    folder = causal_model(tmp_path / "model", tokenizer=tiny_tokenizer())
    task = opened(tmp_path, tokenizer_of(folder))
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert all(250 < value < 350 for value in task.scores(model).values())
    assert float(language_loss(model, next(iter(task.train(0, 1)))).detach()) == pytest.approx(math.log(300), rel=0.05)


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="task = 'ptb' is not known: choose one of prose, wikitext2, wikitext2-v1"):
        open_language_task("ptb", 16, 2)
    with pytest.raises(ValueError, match="window = 1: give a whole number, 2 or larger"):
        opened(tmp_path, window=1)
    with pytest.raises(ValueError, match="batch = 0"):
        opened(tmp_path, batch=0)
    with pytest.raises(ValueError, match="test_windows = -1"):
        opened(tmp_path, test_windows=-1)
    with pytest.raises(ValueError, match="text .* has [0-9]+ tokens, fewer than one window of 9999"):
        opened(tmp_path, window=9999)


def test_a_model_of_another_vocabulary_or_fewer_positions_is_refused(tmp_path):
    task = opened(tmp_path)
    task.check(small_llama(300, 1, 16, 2, 1, positions=16))
    with pytest.raises(
        ValueError, match="outside the model's vocabulary of 270: the tokenizer belongs to another model"
    ):
        task.check(small_llama(270, 1, 16, 2, 1, positions=16))
    with pytest.raises(ValueError, match="window = 16 is longer than the 8 positions"):
        task.check(small_llama(300, 1, 16, 2, 1, positions=8))
    assert int(task.training.max()) >= 270
