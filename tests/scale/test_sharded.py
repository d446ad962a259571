"""Prehab on shards: two processes on the CPU, each with half of every weight and half of every batch."""

import copy
import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing
from torch.distributed.fsdp import fully_shard

from prehab_lib.evaluate import classification_loss
from prehab_lib.fast import Fast
from prehab_lib.precision import is_sharded, whole
from prehab_lib.prehab import Training, prehab
from prehab_lib.stats import collect
from tests.stack import Stack, stack_batches

STEPS, PROCESSES = 3, 2
SETTINGS = dict(surrogate="nuclear", lam=0.5, steps=STEPS, lr=1e-2, reduction="mean", training=Training(train="all"))
FAST = SETTINGS | dict(surrogate=Fast("stable_rank", refresh=2), lam=2.0)


def start():
    model, batches = Stack(depth=2), stack_batches(count=STEPS, size=160)
    return model, batches, collect(model, batches)


def half_of(batch, rank):
    return tuple(part[rank::PROCESSES] for part in batch)


def sharded_start(mesh):
    model, batches, stats = start()
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh), batches, stats


def gathered(model):
    return {name: whole(parameter).detach() for name, parameter in model.named_parameters()}


def work(rank, port, folder):
    """One process: shard the model, train, and let the first process write the gathered result."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    model, batches, stats = sharded_start(mesh)
    halves = [half_of(batch, rank) for batch in batches]
    history = prehab(model, classification_loss, halves, stats, **SETTINGS)
    assert all(is_sharded(parameter) for parameter in model.parameters())
    assert model.head.weight.to_local().shape[0] == 12 // PROCESSES
    with pytest.raises(ValueError) as refused:
        prehab(model, classification_loss, halves, stats, **SETTINGS | {"coordinates": "whitened"})
    quick, _, _ = sharded_start(mesh)
    fast = prehab(quick, classification_loss, halves, stats, **FAST)
    results = {"weights": gathered(model), "rows": history.rows, "refused": str(refused.value)}
    results |= {"fast weights": gathered(quick), "fast rows": fast.rows}
    if rank == 0:
        torch.save(results, folder / "result.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    method = "spawn" if torch.cuda.is_available() else "fork"  # a fork has imported everything already
    multiprocessing.start_processes(work, args=(port, folder), nprocs=PROCESSES, start_method=method)
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.mark.parametrize(("what", "settings", "rel"), [("", SETTINGS, 1e-5), ("fast ", FAST, 1e-4)])
def test_shards_are_trained_to_the_weights_of_one_process(what, settings, rel, sharded):
    """Each step on its own, and with a held tangent.  The control says that a lost gradient would have been seen."""
    model, batches, stats = start()
    control, before = copy.deepcopy(model), copy.deepcopy(model)
    history = prehab(model, classification_loss, batches, stats, **settings)
    for name, parameter in model.named_parameters():
        ours = sharded[f"{what}weights"][name]
        torch.testing.assert_close(ours, parameter.detach(), rtol=10 * rel, atol=rel / 10)
        assert not torch.allclose(parameter, before.get_parameter(name), rtol=1e-3, atol=1e-4)
    for ours, alone in zip(sharded[f"{what}rows"], history.rows, strict=True):
        assert ours["surrogate"] == pytest.approx(alone["surrogate"], rel=rel)
        assert ours["entropy_rank"] == pytest.approx(alone["entropy_rank"], rel=rel)
    prehab(control, classification_loss, batches, stats, **settings | dict(lam=0.0))
    assert not torch.allclose(control.head.weight, model.head.weight, rtol=1e-2, atol=1e-3)
    message = "coordinates='whitened' needs whole weights, and 'blocks.0.up.weight' is sharded"
    assert message in sharded["refused"]
