"""How ranks find each other, and what one says that finds nobody."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.ports import free_port
from xvlm_data.errors import UserError
from xvlm_train.engine import distributed
from xvlm_train.engine.rendezvous import agree


def test_ranks_that_find_nobody_say_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_PATIENCE", timedelta(seconds=2))
    given = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**given, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="rank 1 of 2 does not find the others") as caught:
        distributed.join()
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(UserError, match="MASTER_PORT"):
        distributed.join()


@pytest.mark.parametrize("name", ["meta", "xpu", "nonsense", "mps:7"])
def test_what_is_no_device_here_is_told(name: str) -> None:
    with pytest.raises(UserError, match="use auto, cpu or cuda"):
        distributed.choose_device(name)


def test_each_start_has_a_name_that_only_its_ranks_know() -> None:
    store = dist.HashStore()
    store.set("hello/2", "of a rank that died before it was answered")
    seen = set()
    for _ in range(3):
        names: list[str | None] = [None] * 4

        def call(rank: int, names: list[str | None] = names) -> None:
            names[rank] = agree(store, rank, 4, timedelta(seconds=30))

        ranks = [threading.Thread(target=call, args=(rank,)) for rank in range(4)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
        (name,) = set(names)
        assert name is not None and name not in seen
        seen.add(name)


def test_rank_0_tells_who_did_not_come() -> None:
    store = dist.HashStore()
    store.set("hello/1", "of a rank that is gone")
    with pytest.raises(RuntimeError, match=r"\[1\] did not come"):
        agree(store, 0, 2, timedelta(seconds=0.3))


def work(rank: int, port: int) -> None:
    os.environ |= {
        **{"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        **{"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"},
    }
    if rank == 1:
        # Long enough for rank 0 to find what an earlier rank 1 has left.
        threading.Event().wait(0.5)
    distributed.join()
    total = torch.ones(1)
    dist.all_reduce(total)
    os._exit(0 if total.item() == 2 else 1)  # gone without a word, as if killed


def test_a_new_start_in_the_store_of_an_earlier_one() -> None:
    """As torchrun does it: its agent keeps the store, and ranks are started again."""
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True)
    context = mp.get_context("spawn")
    for _ in range(2):
        ranks = [context.Process(target=work, args=(rank, agent.port)) for rank in range(2)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(60)
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
        assert codes == [0, 0]
