"""The pool of CPU memory that kept tensors and workspaces come from."""

import gc
import threading

import torch

import ade_fast as ade
from ade_fast._ops import pool_bytes

T, B = 20, 200


def unroll() -> tuple[torch.Tensor, ade.MLPPotential, torch.Tensor]:
    potential, x0 = ade.MLPPotential(2, (64, 64), "silu"), torch.randn(B, 2)
    out = ade.Leapfrog(T, 0.1, memory="graph")(potential, x0, torch.randn(B, 2))
    return out.x, potential, x0


def test_what_an_unroll_keeps_is_in_use_until_its_backward_pass() -> None:
    gc.collect()
    before = ade.memory_in_use()
    x, *_ = unroll()
    products = (T + 1) * B * (64 + 64) * 4  # z_2 and G_1
    assert ade.memory_in_use() - before >= products
    x.sum().backward()
    assert ade.memory_in_use() == before, "freed as soon as it was used"
    assert pool_bytes()[1] >= products, "and waiting for the next call"


def test_the_next_call_takes_the_same_block() -> None:
    x, *_ = unroll()
    x.sum().backward()
    waiting = pool_bytes()[1]
    for _ in range(3):
        x, *_ = unroll()
        x.sum().backward()
    assert pool_bytes()[1] == waiting


def test_release() -> None:
    unroll()[0].sum().backward()
    kept, *_ = unroll()
    ade.release_memory()
    assert pool_bytes()[1] == 0
    kept.sum().backward()  # what was in use is untouched
    assert torch.isfinite(kept).all()


def test_blocks_of_many_sizes_and_threads() -> None:
    """Every thread finds its own results: no block is handed out twice."""
    potential = ade.MLPPotential(2, (64, 64), "silu").double()
    layer = ade.Leapfrog(5, torch.tensor(0.1, dtype=torch.float64), memory="graph")
    starts = [torch.randn(50 + 37 * i, 2, dtype=torch.float64) for i in range(8)]

    def gradient(x0: torch.Tensor) -> torch.Tensor:
        leaf = x0.clone().requires_grad_()
        return torch.autograd.grad(layer(potential, leaf, torch.zeros_like(x0)).x.square().sum(), leaf)[0]

    expected = [gradient(x0) for x0 in starts]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(gradient(starts[i]), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(starts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
