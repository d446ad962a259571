"""What several tests of the room check in the same way."""

import pytest
import torch

from prehab_lib.tasks.language import open_language_task
from tests.text_files import text_folder, tiny_tokenizer


def refuses(said: str, call, *args, error=ValueError, **options) -> None:
    """The call raises an error that says so."""
    with pytest.raises(error, match=said):
        call(*args, **options)


def adamw_steps(monkeypatch) -> list[dict]:
    """The settings of every AdamW step from now on, as they are taken."""
    taken, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        taken.append(dict(self.param_groups[0]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return taken


def opened_text(tmp_path, tokenizer=None, window=16, batch=2, rows=40, **options):
    """A WikiText task of so many sentences, written first."""
    sets = str(text_folder(tmp_path / "sets", rows))
    return open_language_task("wikitext2", window, batch, tokenizer or tiny_tokenizer(), data_root=sets, **options)
