"""How the processes of a run find each other, also after some of them were started again."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist


def meet(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """A store that all ranks of this start share and no earlier start has written to.

    ``torchrun`` keeps one store for all restarts of a run. What ranks that are gone have left
    there, such as the addresses that gloo listens at, would be taken for that of the new ones: then
    two ranks wait for each other until the timeout. The number of restarts does not tell starts
    apart, since every node counts its own.

    Args:
        timeout: how long to wait for the others.

    Returns:
        The store, this process's rank, and how many there are; as the environment says.

    Raises:
        RuntimeError: the others do not come.
        ValueError: a variable of the environment is missing.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.PrefixStore(agree(store, rank, size, timeout), store)
    store.set_timeout(timeout)
    return store, rank, size


def agree(store: dist.Store, rank: int, size: int, timeout: timedelta) -> str:
    """A name of this start that all of its ranks know, and no earlier one had.

    Every other rank says hello with a word that is only its own, and rank 0 answers to that word
    with the name. Rank 0 may answer a rank that is gone; it goes on until each has confirmed.
    """
    if rank:
        word = uuid4().hex
        store.set(f"hello/{rank}", word)
        store.wait([f"welcome/{word}"], timeout)
        name = store.get(f"welcome/{word}").decode()
        store.set(f"confirmed/{name}/{rank}", "")
        return name
    name = uuid4().hex
    missing = set(range(1, size))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{store.get(f'hello/{other}').decode()}", name)
        missing = {other for other in missing if not store.check([f"confirmed/{name}/{other}"])}
        if missing and time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(missing)} did not come")
        time.sleep(0.01)
    return name
