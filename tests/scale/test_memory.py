"""What a process holds: the peak of one call, and freed pieces that go back to the system."""

import os
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch

from prehab_lib.decomposition import Weighting
from prehab_lib.scale import lean, memory, stream
from tests.families import llama

MIB = 2**20
says = pytest.mark.skipif(not os.access(memory.CLEAR_REFS, os.W_OK), reason="this system does not tell its peak memory")


@says
def test_the_peak_is_that_of_the_call_alone():
    """A gigabyte was held before the call and given back: the peak of the call does not know it."""
    earlier = torch.ones(2**27)
    del earlier
    size = 200 * MIB
    found = memory.peak_memory(lambda: torch.ones(size // 4))
    assert size * 0.95 < found < size * 1.3
    held = torch.ones(size // 4)
    assert memory.peak_memory(lambda: None) < size / 10 and held[0] == 1


def pieces():
    """256 MiB in pieces of 64 KiB, which the C library keeps when they are freed."""
    return [torch.ones(MIB // 64) for _ in range(4096)]


@says
def test_freed_pieces_that_a_call_takes_again_count_as_its_own():
    freed, barrier = pieces(), torch.ones(MIB // 64)
    del freed
    assert memory.peak_memory(pieces) > 240 * MIB and barrier[0] == 1


@says
def test_freed_pieces_go_back_to_the_system():
    """In a process of its own: what others left free in the heap would take some of the pieces in."""
    script = """
import torch
from prehab_lib.scale import memory
size = 2**14  # 64 KiB in float32: the C library keeps such pieces
pieces = [torch.ones(size) for _ in range(4096)]
barrier = torch.ones(size)  # behind them, so that what is freed is not the end of the heap
full = memory._resident("VmRSS")
del pieces
kept = memory._resident("VmRSS")
memory.give_back()
print(full - kept, kept - memory._resident("VmRSS"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lost, given_back = map(int, done.stdout.split())
    assert lost < 64 * MIB and given_back > 192 * MIB


def test_a_system_that_does_not_tell_its_peak_or_cannot_give_back_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", str(tmp_path / "none" / "clear_refs"))
    work = Mock()
    assert memory.peak_memory(work) is None and work.call_count == 1
    for problem in (OSError, AttributeError, TypeError):
        monkeypatch.setattr(memory.ctypes, "CDLL", Mock(side_effect=problem))
        memory.give_back()


def test_streamed_surgery_gives_back_before_each_decomposition_and_its_workspace(monkeypatch):
    events, compute = [], {"gram": stream.Block.collect, "eigenvectors": torch.linalg.eigh}

    def noted(event):
        return lambda *args, **options: events.append(event) or compute[event](*args, **options)

    monkeypatch.setattr(stream.Block, "collect", noted("gram"))
    monkeypatch.setattr(torch.linalg, "eigh", noted("eigenvectors"))
    for module in (stream, lean):
        monkeypatch.setattr(module, "give_back", lambda: events.append("back"))
    monkeypatch.setattr(lean, "WORTH", 0)
    ids = torch.randint(3, 40, (8, 12), generator=torch.Generator().manual_seed(0))
    stream.compress(llama(num_hidden_layers=1), "svd_llm", 0.4, [{"input_ids": ids}])
    cut = ["back", "eigenvectors"]
    assert events == ["gram", "back", *7 * cut]


def test_small_moments_are_not_worth_it(monkeypatch):
    monkeypatch.setattr(lean, "give_back", asked := Mock())
    W = torch.randn(24, 40, dtype=torch.float64)
    for worth, times in ((lean.WORTH, 0), (24 * 24 * 8, 1)):
        monkeypatch.setattr(lean, "WORTH", worth)
        lean.factorise(W, Weighting())
        assert asked.call_count == times, worth
