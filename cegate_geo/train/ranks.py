"""Several processes that train one model: each computes its part of every batch, and all take the same step.

They are started by `torchrun`, or by anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Gradients are
summed by hand over the parameters that are trained at a step. torch's DistributedDataParallel would have to be told of
each new choice of the gate, as it does not bear changing requires_grad, and averages where a sum is needed: chips
without labels weigh nothing.

Law: every process holds the same weights, averages and statistics after each step, to the bit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from cegate_geo.errors import CegateError, ConfigError, InputError

PATIENCE = timedelta(days=1)
"""How long one process waits for another that lives. A dead one is seen at once: its connections are closed."""
TELLING = timedelta(seconds=5)
"""How long a process stays for the one that tells what went wrong, so that the launcher does not end that one first."""
FAILED, TOLD = "cegate-geo/failed", "cegate-geo/told"
"""Keys of the store: how many came to an end with an error, and the exit code of the one that told the user."""
BUCKET = 2**24
"""Gradients that are summed in one go, in numbers: the extra memory is bounded by this."""


class Ranks:
    """This process among all that train together; alone unless `join_ranks` says otherwise.

    Args:
        index: Number of this process, from 0. The first one writes, and talks to the user.
        count: Number of processes.
        store: What the processes share before and after they can reach each other; None for one alone.
        device: torch device that this process computes on.
    """

    def __init__(self, *, index: int = 0, count: int = 1, store: Any = None, device: str = "cpu") -> None:
        self.index, self.count, self.device = index, count, device
        self._store = store

    @property
    def is_first(self) -> bool:
        """Whether this process writes and talks."""
        return self.index == 0

    def part(self, items: int) -> range:
        """Places of a list that this process works on, one after the other; those of all processes partition it."""
        return range(items * self.index // self.count, items * (self.index + 1) // self.count)

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes: the same bits in each."""
        if self._store is None:
            return tensor
        result = tensor.detach().clone()
        with self._lost():
            distributed.all_reduce(result)
        return result

    def sums(self, values: npt.NDArray[Any] | Sequence[float]) -> npt.NDArray[Any]:
        """The sum of numbers over all processes."""
        found: npt.NDArray[Any] = self.total(torch.from_numpy(np.array(values))).numpy()
        return found

    def any(self, is_so: bool) -> bool:
        """Whether it is so in one process at least."""
        return bool(self.sums([float(is_so)])[0] > 0)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes. Parameters without one are left alone."""
        if self._store is None:
            return
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = self.total(torch.cat([g.reshape(-1) for g in bucket]))
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    @torch.no_grad()
    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over all processes."""
        if self._store is None:
            return
        for tensor in tensors:
            tensor.copy_(self.total(tensor) / self.count)

    def wait(self) -> None:
        """Until all processes are here."""
        self.sums([0.0])

    def require_same(self, what: str, *parts: str | bytes | torch.Tensor) -> None:
        """Refuse to go on with processes that differ.

        Args:
            what: Their name in the message.
            parts: What is to be the same.

        Raises:
            InputError: If they differ.
        """
        if self._store is None:
            return
        digest = hashlib.sha256()
        for part in parts:
            digest.update(_as_bytes(part))
        own = np.frombuffer(digest.digest()[:24], np.uint32).astype(np.float64)  # sums of them are exact
        table = np.zeros((self.count, len(own)))
        table[self.index] = own
        table = self.sums(table)
        others = [n for n in range(self.count) if not (table[n] == table[0]).all()]
        if others:
            raise InputError(
                f"The processes {others} have other {what} than the first one.",
                hint="All need the same command, the same versions, and the same files: a folder that all of them see.",
            )

    def is_speaker(self) -> bool:
        """Whether this process is the first that came to its end with an error: it alone tells the user."""
        if self._store is None:
            return True
        try:
            return bool(self._store.add(FAILED, 1) == 1)
        except RuntimeError:  # the store went with the process that kept it
            return True

    def told(self, code: int) -> None:
        """Say that the user was told, and with which exit code this process ends."""
        if self._store is not None:
            with suppress(RuntimeError):  # nobody is left to hear it
                self._store.set(TOLD, str(code))

    def hear(self, code: int) -> int:
        """Wait until the speaker has told the user; gives its exit code, or the given one if it takes too long."""
        try:
            self._store.wait([TOLD], TELLING)
            return int(self._store.get(TOLD))
        except RuntimeError:
            return code

    @contextmanager
    def _lost(self) -> Iterator[None]:
        """Errors of the transport, in our words."""
        try:
            yield
        except RuntimeError as error:
            raise CegateError(
                f"Another process of this training ended, or can't be reached: {str(error).splitlines()[0][:200]}.",
                hint="See what it said; the system may have killed it for want of memory. Go on with --resume.",
            ) from error


@contextmanager
def join_ranks(device: str = "auto") -> Iterator[Ranks]:
    """This process among those that the launcher started; alone without a launcher.

    Args:
        device: "auto", "cuda", "cpu" or a torch device. Of several processes on a machine each takes a GPU of its own
            for "auto" and "cuda".

    Yields:
        The ranks, with their devices.

    Raises:
        ConfigError: If there are more processes than GPUs.
        CegateError: If the processes do not find each other.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield alone(device)
        return
    own = _own_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    is_cuda = torch.device(own).type == "cuda"
    if is_cuda:
        torch.cuda.set_device(torch.device(own))
    try:
        store, index, count = next(iter(rendezvous("env://", timeout=PATIENCE)))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo", store=store, rank=index, world_size=count, timeout=PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise CegateError(
            f"The processes of this training do not find each other: {str(error).splitlines()[0][:200]}.",
            hint="Start them with torchrun; check MASTER_ADDR and MASTER_PORT.",
        ) from error
    try:
        yield Ranks(index=index, count=count, store=store, device=own)
    finally:
        distributed.destroy_process_group()


def alone(device: str = "auto") -> Ranks:
    """This process as the only one."""
    return Ranks(device=_only_device(device))


def _only_device(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _own_device(device: str, local: int) -> str:
    """The device of the process with a number on its machine."""
    device = _only_device(device)
    if device != "cuda":
        return device
    if local >= torch.cuda.device_count():
        raise ConfigError(
            f"There are {torch.cuda.device_count()} GPUs for process {local + 1} of this machine.",
            hint="Lower --nproc-per-node, or train with --device cpu.",
        )
    return f"cuda:{local}"


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients of one type and device in groups of at most `BUCKET` numbers, in order."""
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        is_other = bucket and (gradient.dtype, gradient.device) != (bucket[0].dtype, bucket[0].device)
        if bucket and (is_other or sum(g.numel() for g in bucket) + gradient.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def _as_bytes(part: str | bytes | torch.Tensor) -> bytes:
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, bytes):
        return part
    return part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
