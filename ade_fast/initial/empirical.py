"""The nonparametric initial distribution (41): data points, or a replay buffer of earlier samples."""

from __future__ import annotations

import numbers

import torch
from torch import Tensor

from .._tensors import check_dtype, floating_tensor
from .base import InitialDistribution, as_count


class Empirical(InitialDistribution):
    """``x⁰`` from given points, or from a replay buffer of the sampler's own earlier output.

    Without a buffer, ``sample`` draws rows of ``data`` uniformly, with replacement. With one, each row comes
    from the buffer, but from ``data`` with probability ``reinit`` (and always while the buffer is empty);
    :meth:`update` puts new samples into the buffer, over the oldest ones once it is full. To restart chains
    from noise, pass noise as ``data``. In evaluation mode none is restarted, and no row comes twice while there are
    enough: restarts are for training, and what they begin is no sample yet.

    Rows drawn at random, put back over the oldest, leave ever fewer chains: some go on twice and others never, and
    after t rounds through a buffer of N those that are left descend from about 2 N / t. With ``in_turn`` the oldest
    rows are taken instead, which are those that :meth:`update` then writes over: every chain goes on by itself, and
    until the buffer is full all begin from ``data``. (Of more rows than the buffer has, some are the same chain.)

    x has no density, so ``log_q`` is None: H(q⁰) is a constant that drops from the objective (C.2).

    Source: eq. (41); F.2 for a buffer of 10,000 as in Du and Mordatch (2019).
    State: the buffer, how full it is, and where it goes on are in ``state_dict``; ``data`` is not (it is the
    caller's, and may be a whole image set).

    Args:
        data: ``(N, *event)``, N ≥ 1, floating point: sets the event, dtype and device. Kept by reference.
        buffer_size: capacity of the replay buffer; None has none.
        reinit: probability that a row starts afresh from ``data`` although the buffer has samples.
        in_turn: whether each chain of the buffer goes on by itself; needs ``buffer_size``.
        momentum: the distribution of v; None is N(0, I).

    Raises:
        TypeError, ValueError: an argument of the wrong kind or out of range.
    """

    data: Tensor
    buffer: Tensor
    filled: Tensor
    position: Tensor
    buffer_size: int | None
    reinit: float
    in_turn: bool

    def __init__(
        self,
        data: Tensor,
        buffer_size: int | None = None,
        *,
        reinit: float = 0.05,
        in_turn: bool = False,
        momentum: InitialDistribution | None = None,
    ) -> None:
        floating_tensor("Empirical", "data", data)
        if data.ndim < 1 or len(data) < 1:
            raise ValueError(f"Empirical: data must be (N, *event) with N at least 1, got {tuple(data.shape)}")
        if isinstance(reinit, bool) or not isinstance(reinit, numbers.Real):
            raise TypeError(f"Empirical: reinit must be a number, got {type(reinit).__name__}")
        if not 0 <= reinit <= 1:
            raise ValueError(f"Empirical: reinit must be a probability in [0, 1], got {reinit}")
        if not isinstance(in_turn, bool):
            raise TypeError(f"Empirical: in_turn must be True or False, got {in_turn!r}")
        if in_turn and buffer_size is None:
            raise ValueError("Empirical: in_turn is about a replay buffer; construct with buffer_size=")
        super().__init__(tuple(data.shape[1:]), momentum=momentum)
        self.reinit = float(reinit)
        self.in_turn = in_turn
        self.buffer_size = None if buffer_size is None else as_count("Empirical", "buffer_size", buffer_size, least=1)
        data = data.detach()
        self._anchor = data.new_empty(0)
        self.register_buffer("data", data, persistent=False)
        if self.buffer_size is not None:
            self.register_buffer("buffer", data.new_zeros(self.buffer_size, *self.event))
            # Tensors, so that neither sampling nor updating waits for the device.
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64, device=data.device))
            self.register_buffer("position", torch.zeros((), dtype=torch.int64, device=data.device))

    def sample_x(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, None]:
        fresh = self.data[self._uniform_rows(n, len(self.data), generator)]
        if self.buffer_size is None:
            return fresh, None
        if not self.training and (filled := int(self.filled)):
            return self.buffer[self._different_rows(n, filled, generator)], None
        if self.in_turn:
            rows = (self.position + torch.arange(n, device=self.data.device)) % self.buffer_size
            restart = (self._unit(n, generator) < self.reinit) | (self.filled < self.buffer_size)
        else:
            rows = self._uniform_rows(n, self.filled, generator)
            restart = (self._unit(n, generator) < self.reinit) | (self.filled == 0)
        kept = self.buffer[rows]
        return torch.where(restart.view(n, *(1 for _ in self.event)), fresh, kept), None

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Put samples into the replay buffer, over the oldest once it is full.

        Args:
            x: ``(k, *event)``, any k (of more rows than the buffer holds, the last ones stay); copied,
                detached.

        Raises:
            RuntimeError: there is no buffer.
            TypeError, ValueError: ``x`` has another dtype, shape or device than the buffer.
        """
        if self.buffer_size is None:
            raise RuntimeError("Empirical.update: there is no replay buffer; construct with buffer_size=")
        floating_tensor("Empirical.update", "x", x)
        check_dtype("Empirical.update", "x", x, "the buffer's", self.buffer.dtype)
        if x.ndim < 1 or tuple(x.shape[1:]) != self.event:
            raise ValueError(
                f"Empirical.update: x must have the shape (k, {', '.join(map(str, self.event))}), got {tuple(x.shape)}"
            )
        if x.device != self.buffer.device:
            raise ValueError(f"Empirical.update: x must be on the buffer's device {self.buffer.device}, got {x.device}")
        x = x[-self.buffer_size :]
        slots = (self.position + torch.arange(len(x), device=x.device)) % self.buffer_size
        self.buffer[slots] = x
        self.position.copy_((self.position + len(x)) % self.buffer_size)
        self.filled.copy_((self.filled + len(x)).clamp(max=self.buffer_size))

    def _unit(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Uniform draws in [0, 1); in float64, whose grid is fine enough to index with."""
        device = self.data.device if generator is None else generator.device
        return torch.rand(n, generator=generator, dtype=torch.float64, device=device).to(self.data.device)

    def _uniform_rows(self, n: int, count: int | Tensor, generator: torch.Generator | None) -> Tensor:
        """``n`` row numbers below ``count`` (0 where ``count`` is 0), with replacement."""
        return (self._unit(n, generator) * count).long()

    def _different_rows(self, n: int, count: int, generator: torch.Generator | None) -> Tensor:
        """``n`` row numbers below ``count`` in random order, each as often as any other but for one."""
        rounds = [self._unit(count, generator).argsort() for _ in range(-(-n // count))]
        return torch.cat([*rounds, torch.empty(0, dtype=torch.int64, device=self.data.device)])[:n]

    def extra_repr(self) -> str:
        buffer = "" if self.buffer_size is None else f", buffer_size={self.buffer_size}, reinit={self.reinit}"
        return f"event={self.event}, points={len(self.data)}{buffer}"
