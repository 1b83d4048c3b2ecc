"""One process or many: who this process is, and the few things that ranks say to each other."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from xvlm_data.errors import UserError
from xvlm_train.engine.rendezvous import meet

T = TypeVar("T")

#: What gloo, NCCL and their stores say when a peer is gone.
_LOST = re.compile(
    r"closed by peer|reset by peer|connection (was )?(closed|refused|reset)|broken pipe"
    r"|remote process exited|NCCL error|failed to recv",
    re.IGNORECASE,
)
#: Rank 0 evaluates and saves while the others wait in their next collective.
_TIMEOUT = timedelta(hours=1)
#: Nodes of a cluster may start minutes apart.
_PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and talks to the console."""
        return self.rank == 0


def join() -> None:
    """Join the processes that ``torchrun`` started, if there are several and they did not yet.

    Raises:
        UserError: they do not find each other; ``torchrun --max-restarts`` tries again.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # gloo carries the host-side messages (stop flags) on GPU runs too.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            store, rank, size = meet(_PATIENCE)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT
            )
        except (RuntimeError, ValueError) as error:  # torch's; a variable that is missing
            rank_of = f"{os.environ.get('RANK')} of {os.environ['WORLD_SIZE']}"
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"rank {rank_of} does not find the others ({why})",
                "start all of them with torchrun, or with the same MASTER_ADDR and MASTER_PORT",
            ) from error


def start(device: str = "auto") -> World:
    """Join the others, if there are any, and choose the device.

    Args:
        device: ``auto`` (a GPU when there is one), or a torch device such as ``cpu``, ``cuda:1``.

    Raises:
        UserError: the device does not exist here.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    join()
    return World(rank, size, chosen)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """``auto`` is a GPU where there is one; ``cuda`` the one of this process.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(0, device=device).numpy(force=True)
    except (RuntimeError, AssertionError):  # no name of one, not in this build, without data
        raise UserError(f"device {name!r} is not a device", "use auto, cpu or cuda") from None
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise UserError(
                f"GPU {index} asked for, {torch.cuda.device_count()} found",
                "use the device cpu, or start fewer processes",
            )
        device = torch.device("cuda", index)
        # It makes a plan, in milliseconds, for every new shape, and texts have many.
        torch.backends.cuda.enable_cudnn_sdp(False)
    return device


def finish() -> None:
    """Leave the process group, when there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def lost_ranks_told() -> Iterator[None]:
    """Say in one line that another rank is gone, which collectives tell at length.

    Raises:
        UserError: a collective failed because of it.
    """
    try:
        yield
    except RuntimeError as error:  # of which torch's errors of communication are kinds
        if not dist.is_initialized() or not _LOST.search(str(error)):
            raise
        raise UserError(
            "another rank ended, so this one cannot go on", "see what that rank said"
        ) from None


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The elementwise sum of ``values`` over all ranks (in place)."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_over_ranks(value: T) -> list[T]:
    """Every rank's ``value``, by rank; on every rank."""
    if not dist.is_initialized():
        return [value]
    everyone: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def from_main(value: T) -> T:
    """Rank 0's ``value`` on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def on_main(work: Callable[[], T]) -> T:
    """Let rank 0 alone do ``work``, for its result on every rank.

    Raises:
        UserError: rank 0's; on every rank.
    """
    outcome: T | UserError | None = None
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            outcome = work()
        except UserError as error:
            outcome = error
    outcome = from_main(outcome)
    if isinstance(outcome, UserError):
        raise outcome
    return cast("T", outcome)


class StopAgreement:
    """Lets every rank stop after the same step, though a signal reaches them at different ones.

    The flags of one step are exchanged while the next one computes, so nobody waits for the answer.
    """

    def __init__(self) -> None:
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._pending: dist.Work | None = None

    def stop_now(self, wanted: int) -> int:
        """Tell the others why this rank wants to stop (0: it does not), as a number.

        Returns:
            The greatest reason that any of them gave the last time; 0 to go on.
        """
        if not dist.is_initialized():
            return wanted
        if self._pending is not None:
            self._pending.wait()
            if reason := int(self._flag.item()):
                return reason
        self._flag.fill_(wanted)
        self._pending = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, async_op=True)
        return 0

    def finish(self) -> None:
        """Wait for the exchange that is still on its way."""
        if self._pending is not None:
            self._pending.wait()
