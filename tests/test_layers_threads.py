"""Threads and forks around the layers: everybody's gradient is that of autograd's own unroll."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from cases import DOUBLE as D
from situations import STEP, assert_same, eager, net, ours, start
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import ade_fast as ade

pytestmark = pytest.mark.filterwarnings("ignore::ade_fast.SlowPathWarning")


def fused(activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 1)).double()


every_path = pytest.mark.parametrize(
    ("make", "memory"),
    [(fused, "graph"), (fused, "states"), (net, "graph"), (net, "states"), (lambda: net(nn.ReLU), "masks")],
    ids=["fused-graph", "fused-states", "graph", "states", "program"],
)


def in_thread(task: Callable, *args, **options):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(task, *args, **options).result()


def together(*tasks: Callable) -> list:
    """All at once, from one moment on."""
    gate = threading.Barrier(len(tasks))

    def wait(task: Callable):
        gate.wait()
        return task()

    with concurrent.futures.ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(wait, task) for task in tasks]]


def gradients(f: nn.Module, loss: Tensor) -> tuple:
    return torch.autograd.grad(loss, list(f.parameters()), allow_unused=True)


# --- Threads --------------------------------------------------------------------------------------------------------


@every_path
def test_each_pass_in_a_thread_of_its_own(make, memory: str) -> None:
    f, (x0, v0) = make(), start()
    wanted = gradients(f, eager(f, x0, v0))
    assert_same(gradients(f, in_thread(ours, f, x0, v0, memory=memory)), wanted)
    assert_same(in_thread(gradients, f, ours(f, x0, v0, memory=memory)), wanted)
    assert_same(in_thread(gradients, f, in_thread(ours, f, x0, v0, memory=memory)), wanted)


@every_path
@pytest.mark.parametrize("shared", [False, True])
def test_unrolls_at_the_same_time(shared: bool, make, memory: str) -> None:
    """Of potentials of their own, or of one."""
    fs = [make()] * 4 if shared else [make() for _ in range(4)]
    starts = [start() for _ in fs]
    wanted = [gradients(f, eager(f, *at)) for f, at in zip(fs, starts, strict=True)]

    def task(f: nn.Module, at: tuple[Tensor, Tensor]) -> Callable:
        return lambda: [gradients(f, ours(f, *at, memory=memory)) for _ in range(3)]

    for found, right in zip(together(*map(task, fs, starts)), wanted, strict=True):
        for one in found:
            assert_same(one, right)


@every_path
def test_backward_passes_at_the_same_time(make, memory: str) -> None:
    f, starts = make(), [start() for _ in range(4)]
    wanted = [gradients(f, eager(f, *at)) for at in starts]
    losses = [ours(f, *at, memory=memory) for at in starts]
    for found, right in zip(together(*[lambda loss=loss: gradients(f, loss) for loss in losses]), wanted, strict=True):
        assert_same(found, right)


@every_path
def test_a_thread_without_gradients_beside_one_with(make, memory: str) -> None:
    f, (x0, v0) = make(), start()
    wanted = gradients(f, eager(f, x0, v0))

    def sampling() -> Tensor:
        with torch.no_grad():
            return ade.Leapfrog(3, STEP)(f, x0, v0).x

    found, x = together(lambda: gradients(f, ours(f, x0, v0, memory=memory)), sampling)
    assert_same(found, wanted)
    assert not x.requires_grad
    torch.testing.assert_close(x, ade.Leapfrog(3, STEP)(f, x0, v0).x.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", ["graph", "states"])
@pytest.mark.parametrize(
    "setting",
    [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.random.fork_rng(), lambda: torch.device("cpu")],
    ids=["autocast", "random state", "device"],
)
def test_a_threads_settings_go_with_its_unroll(setting, memory: str) -> None:
    """Autocast is each thread's own; noise is drawn again wherever the backward pass runs."""
    inner, (x0, v0) = net(), start()

    def f(x: Tensor) -> Tensor:
        return inner(x + 0.1 * torch.randn_like(x)) * (2 if torch.is_autocast_enabled("cpu") else 1)

    def within(memory: str) -> Tensor:
        torch.manual_seed(0)
        with setting():
            return ours(f, x0, v0, memory=memory)

    wanted = gradients(inner, within("graph"))
    loss = in_thread(within, memory)
    assert_same(in_thread(gradients, inner, loss), wanted)


def test_objectives_in_threads_are_their_own() -> None:
    """What is current in a thread (ends, weights' gradients, records) is no other's."""
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        sampler = ade.DualSampler(ade.initial.Gaussian(2), ade.Leapfrog(2, 0.1)).double()
        f = ade.WithBase(ade.MLPPotential(2, (32, 32), "relu"), 0.0, 3.0).double()
        models.append(ade.ADE(f, sampler, bound="importance", gradient_penalty=0.1, optimizer=False))
    data = torch.randn(8, 2, dtype=D)

    def task(model: ade.ADE) -> list[Tensor]:
        loss = model.loss(data, generator=torch.Generator().manual_seed(5))
        return list(torch.autograd.grad(loss, list(model.potential.parameters())))

    wanted = [task(model) for model in models]
    for _ in range(3):
        for found, right in zip(together(*[lambda m=m: task(m) for m in models]), wanted, strict=True):
            assert_same(found, right)


# --- Forks ----------------------------------------------------------------------------------------------------------

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


def in_child(task: Callable[[], object]) -> object:
    """What a forked process finds, or the error there."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            torch.set_num_threads(1)  # as a DataLoader's worker does
            try:
                found = task()
            except BaseException as error:
                found = error
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(found, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pickle.load(pipe)
    os.waitpid(child, 0)
    if isinstance(found, BaseException):
        raise found
    return found


def as_arrays(found: tuple) -> list:
    """Of plain numbers: tensors would travel through shared memory."""
    return [None if t is None else t.numpy() for t in found]


def as_tensors(found: list) -> list[Tensor | None]:
    return [None if a is None else torch.from_numpy(a) for a in found]


@forks
@every_path
@pytest.mark.parametrize("when", ["before anything", "after both passes", "between the passes"])
def test_a_forked_process(when: str, make, memory: str) -> None:
    f, (x0, v0) = make(), start()
    wanted = gradients(f, eager(f, x0, v0))
    if when == "after both passes":
        assert_same(gradients(f, ours(f, x0, v0, memory=memory)), wanted)
    loss = ours(f, x0, v0, memory=memory) if when == "between the passes" else None

    def task() -> list:
        return as_arrays(gradients(f, ours(f, x0, v0, memory=memory) if loss is None else loss))

    assert_same(as_tensors(in_child(task)), wanted)
    loss = ours(f, x0, v0, memory=memory) if loss is None else loss
    assert_same(gradients(f, loss), wanted)  # and the parent has lost nothing


class Samples(Dataset):
    """Samples of f, drawn by whoever loads them."""

    def __init__(self, f: nn.Module, x0: Tensor, v0: Tensor) -> None:
        self.f, self.x0, self.v0 = f, x0, v0

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> Tensor:
        with torch.no_grad():
            return ade.Leapfrog(i + 1, STEP)(self.f, self.x0, self.v0).x


@forks
@pytest.mark.parametrize("make", [fused, net], ids=["fused", "general"])
def test_a_dataset_that_unrolls_in_forked_workers(make) -> None:
    dataset = Samples(make(), *start())
    wanted = [dataset[i] for i in range(2)]
    for found, right in zip(
        DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"), wanted, strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
