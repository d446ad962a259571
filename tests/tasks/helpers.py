"""What several tests of the room check in the same way."""

import pytest
import torch


def refuses(said: str, call, *args, error=ValueError, **options) -> None:
    """The call raises an error that says so."""
    with pytest.raises(error, match=said):
        call(*args, **options)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def learning_rates(monkeypatch) -> list[float]:
    """Of every AdamW step from now on, as they are taken."""
    rates, step = [], torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    return rates
