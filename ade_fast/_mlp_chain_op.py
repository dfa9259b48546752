"""Markov chains of MLP potentials in one operator (schema: ``csrc/bind/mlp_chain.cpp``). On the CPU alone.

``mlp_chain(x0, seed, kick, drift, weights, biases, …) -> (x, acceptance)``: K transitions of every row of x0 [B, D].
Transition k draws v ~ N(0, noise_std²), takes the L steps of kick [L + 1, D] and drift [L, D] from where the last one
ended, and with ``test`` is accepted where log u < f(x') - f(x) + ½ ‖v‖² - ½ ‖v'‖²; acceptance [K] is the fraction of
the rows that moved (absent without a test). Each point is evaluated once.

Randomness is counter-based: seed int64 [1]; v / noise_std of transition k is ``philox_normal(x0, seed, k)``, and u
comes from a block of the same stream that no normals have. normals [K, B, D] and uniforms [K, B] take its place. The
results do not depend on the number of threads. It has no derivative.

``mlp_contrast(x0, …) -> (x, acceptance, value, dweights, dbiases)``: the same chains, with f where they begin and end,
value [2, B], and the derivatives of Σ (f(end) - f(begin)) / B at fixed points: contrastive divergence without an
evaluation of its own where the chains begin. It has no derivative; `ade_fast._known` makes one of what it has found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._ops import _library, below_autograd, ops

_chain, _contrast = ops.mlp_chain.default, ops.mlp_contrast.default


def mlp_chain(*values: Any) -> tuple[Tensor, Tensor]:
    """The operator without a graph, whatever requires grad."""
    with below_autograd():
        return _chain(*values)


def mlp_contrast(*values: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
    """The operator without a graph, whatever requires grad."""
    with below_autograd():
        return _contrast(*values)


def _register() -> None:
    @torch.library.register_fake("ade_fast::mlp_chain")  # type: ignore[untyped-decorator]
    def fake(
        x0: Tensor,
        seed: Tensor,
        kick: Tensor,
        drift: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        activation: int,
        parameter: float,
        precision: int,
        transitions: int,
        test: bool,
        *rest: Any,
    ) -> tuple[Tensor, Tensor]:
        return x0.new_empty(x0.shape), x0.new_empty((transitions,) if test else (0,))

    @torch.library.register_fake("ade_fast::mlp_contrast")  # type: ignore[untyped-decorator]
    def fake_contrast(
        x0: Tensor,
        seed: Tensor,
        kick: Tensor,
        drift: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        *rest: Any,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        dweights, dbiases = ([t.new_empty(t.shape) for t in tensors] for tensors in (weights, biases))
        return *fake(x0, seed, kick, drift, weights, biases, *rest), x0.new_empty((2, len(x0))), dweights, dbiases

    _library.impl("mlp_chain", mlp_chain, "Autograd")
    _library.impl("mlp_contrast", mlp_contrast, "Autograd")


_register()
