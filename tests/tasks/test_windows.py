import pytest
import torch

from prehab_lib.tasks.windows import Draws, Windows, cut, token_stream
from tests.text_files import tiny_tokenizer


class Letters:
    """A tokenizer by hand: the code of every letter, behind a BOS of 1."""

    def __call__(self, text, **options):
        return {"input_ids": [1, *map(ord, text)]}


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
    batches = list(windows.batches(3))
    assert [len(batch["input_ids"]) for batch in batches] == [3, 1]
    assert torch.cat([batch["input_ids"] for batch in batches]).equal(windows.ids)


def test_a_few_windows_are_spread_over_the_text():
    windows = cut(torch.arange(100), 10, most=4)
    assert windows.ids[:, 0].tolist() == [0, 20, 50, 70] and windows.whole == 10
    assert len(cut(torch.arange(100), 10, most=40)) == len(cut(torch.arange(100), 10, most=0)) == 10


def test_draws_are_windows_of_the_stream_and_repeat_themselves():
    stream = torch.arange(50) + 100
    draws = Draws(stream, window=8, batch=3, seed=0, count=100)
    first, again = ([batch["input_ids"] for batch in draws] for _ in range(2))
    assert len(first) == len(draws) == 100 and all(a.equal(b) for a, b in zip(first, again, strict=True))
    ids = torch.cat(first)
    assert ids.shape == (300, 8) and (ids[:, 1:] - ids[:, :-1] == 1).all()
    assert set(ids[:, 0].tolist()) == set(range(100, 143))  # every place, the last one too
    other = torch.cat([batch["input_ids"] for batch in Draws(stream, 8, 3, 1, 100)])
    assert not ids.equal(other)


def test_draws_with_bos_have_one_token_less_of_the_text():
    plain, led = (next(iter(Draws(torch.arange(9) + 5, 4, 6, 0, 1, bos)))["input_ids"] for bos in (None, 1))
    assert (led[:, 0] == 1).all() and led[:, 1:].equal(plain[:, :-1])


def test_a_stream_of_exactly_one_window_is_enough():
    assert len(cut(torch.arange(5), 5)) == 1
    assert next(iter(Draws(torch.arange(5), 5, 2, 0, 1)))["input_ids"].tolist() == [list(range(5))] * 2


def test_too_little_text_is_one_sentence():
    with pytest.raises(ValueError, match="the text 'C4' has 4 tokens, fewer than one window of 5: give more text"):
        cut(torch.arange(4), 5, what="the text 'C4'")
    with pytest.raises(ValueError, match="the text to draw from has 4 tokens, fewer than one window of 5"):
        Draws(torch.arange(4), 5, 1, 0, 1)
    for nothing in ([], ["", " \n"]):
        with pytest.raises(ValueError, match="there is no text to tokenize"):
            token_stream(nothing, Letters())


def test_windows_say_how_many_they_are():
    assert len(Windows(torch.zeros(7, 3, dtype=torch.int64), 0, 9)) == 7
