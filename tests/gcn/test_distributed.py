"""Two real processes over gloo, started once; what they found is checked test by test."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from gcn.distributed import World, join_world, leave_world
from gcn.layers.batchnorm import BatchNorm
from mesh.errors import InputError

X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 2 + 50
WEIGHTS = torch.arange(21.0).view(7, 3)


def half(rank: int) -> slice:
    return slice(0, 3) if rank == 0 else slice(3, 7)


def normalise(norm: torch.nn.BatchNorm1d, x: torch.Tensor, rows: slice) -> dict[str, torch.Tensor]:
    x = x[rows].clone().requires_grad_()
    out = norm(x)
    (out * WEIGHTS[rows]).sum().backward()
    statistics = {"mean": norm.running_mean, "var": norm.running_var}
    return {"out": out.detach(), "x": x.grad, "weight": norm.weight.grad, **statistics}


def child(rank: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    world = World(rank=rank, size=2)
    found = {
        "sum": world.sum(torch.tensor([1.0, rank])),
        "from_main": world.from_main({"rank": rank}),
        "gather": world.gather(f"r{rank}"),
        "is_main": world.is_main,
        "norm": normalise(BatchNorm(3), X, half(rank)),
        "plain_mean": normalise(_averaging(), X, half(rank)),
        "eval": BatchNorm(3).eval()(X[half(rank)]).detach(),
    }
    try:
        world.from_main(InputError("not so"))
    except InputError as exc:
        found["error"] = str(exc)
    torch.save(found, f"{folder}/{rank}.pt")
    leave_world(world)


def _averaging() -> BatchNorm:
    norm = BatchNorm(3)
    norm.momentum = None
    return norm


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(child, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_everybody_gets_the_sum_the_gathering_and_the_main_process_word(found) -> None:
    for rank, seen in enumerate(found):
        assert seen["sum"].tolist() == [2, 1] and seen["gather"] == ["r0", "r1"] and seen["from_main"] == {"rank": 0}
        assert seen["error"] == "not so" and seen["is_main"] == (rank == 0)


@pytest.mark.parametrize(("key", "momentum"), [("norm", 0.1), ("plain_mean", None)])
def test_batch_norm_over_two_processes_equals_that_of_the_whole_batch(found, key, momentum) -> None:
    whole = normalise(torch.nn.BatchNorm1d(3, momentum=momentum), X, slice(None))
    for name in ("out", "x"):
        joined = torch.cat([seen[key][name] for seen in found])
        torch.testing.assert_close(joined, whole[name], atol=2e-5, rtol=2e-4)
    for name in ("mean", "var"):
        torch.testing.assert_close(found[0][key][name], whole[name])
        torch.testing.assert_close(found[1][key][name], whole[name])
    torch.testing.assert_close(found[0][key]["weight"] + found[1][key]["weight"], whole["weight"], atol=1e-4, rtol=1e-4)


def test_in_use_it_is_plain_batch_norm(found) -> None:
    expected = torch.nn.BatchNorm1d(3).eval()(X)
    torch.testing.assert_close(torch.cat([seen["eval"] for seen in found]), expected)


def test_alone_everything_stays_here(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join_world(torch.device("cpu"))
    values = torch.tensor([1.0])
    assert (world.rank, world.size, world.is_main) == (0, 1, True)
    assert world.sum(values) is values and world.gather(3) == [3] and world.from_main(4) == 4
    torch.testing.assert_close(BatchNorm(3)(X), torch.nn.BatchNorm1d(3)(X))


def test_more_processes_than_gpus_are_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="process 1 of this machine has no GPU of its own"):
        join_world(torch.device("cuda"))
