"""Engines: the same results in the same order, whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data import engine_tasks
from xvlm_data.engines import Engine, Inline, Processes, open_engine
from xvlm_data.errors import UserError


@pytest.fixture(params=["inline", "processes"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    opened: Engine = Inline() if request.param == "inline" else Processes(2)
    with opened:
        yield opened


def test_results_come_in_the_order_of_the_tasks(engine: Engine) -> None:
    for count in (0, 1, 2, 3, 20):
        assert list(engine.map(engine_tasks.squared, range(count))) == [n**2 for n in range(count)]
    assert list(engine.map(engine_tasks.slow_first, range(6))) == list(range(6))


def test_tasks_are_taken_a_few_ahead_of_their_results(engine: Engine) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(1_000):
            taken.append(number)
            yield number

    results = engine.map(engine_tasks.squared, tasks())
    assert len(taken) == 0
    for done in range(1, 30):
        next(results)
        assert len(taken) <= done + engine.workers + 1


def test_what_nobody_waits_for_any_more_is_not_run(engine: Engine, tmp_path: Path) -> None:
    results = engine.map(engine_tasks.noted, ((n, tmp_path) for n in range(100)))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    if hasattr(results, "close"):
        results.close()
    assert list(engine.map(engine_tasks.squared, range(4))) == [0, 1, 4, 9]
    assert len(list(tmp_path.iterdir())) <= 3 + engine.workers + 1


def test_errors_of_tasks_come_through_as_themselves(engine: Engine) -> None:
    results = engine.map(engine_tasks.refused, range(9))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError) as caught:
        next(results)
    assert str(caught.value) == "raw/x.json: broken\u2028 here; download it again"
    assert caught.value.fix == "download it again"
    with pytest.raises(ZeroDivisionError):
        list(engine.map(engine_tasks.divided, range(9)))
    assert list(engine.map(engine_tasks.squared, range(3))) == [0, 1, 4]  # and it goes on


def test_several_processes_work_and_none_for_a_single_task() -> None:
    with Processes(2) as engine:
        assert list(engine.map(engine_tasks.whose, [0])) == [os.getpid()]
        workers = set(engine.map(engine_tasks.whose, range(12)))
        assert len(workers) == 2
        assert os.getpid() not in workers
        # They stay for the next stage.
        assert set(engine.map(engine_tasks.whose, range(12))) == workers


def test_a_worker_that_dies_is_replaced_and_its_task_tried_again(tmp_path: Path) -> None:
    tasks = [(number, tmp_path / "died") for number in range(12)]
    with Processes(2) as engine:
        assert list(engine.map(engine_tasks.dies_once, tasks)) == list(range(12))
        assert (tmp_path / "died").exists()


def test_a_worker_that_always_dies_ends_in_one_clear_line() -> None:
    with Processes(2) as engine:
        results = engine.map(engine_tasks.dies, range(9))
        assert next(results) == 0
        with pytest.raises(UserError, match="worker process was killed") as caught:
            list(results)
        assert "\n" not in str(caught.value)
        assert "fewer --workers" in str(caught.value)


def test_a_worker_may_die_while_its_driver_is_busy_with_a_result(tmp_path: Path) -> None:
    tasks = [(number, tmp_path / "died") for number in range(12)]
    with Processes(2) as engine:
        results = engine.map(engine_tasks.dies_once, tasks)
        found = [next(results)]
        while not (tmp_path / "died").exists():
            time.sleep(0.01)
        time.sleep(0.3)  # the pool knows by now
        assert found + list(results) == list(range(12))


def test_workers_that_die_between_two_stages_are_replaced() -> None:
    with Processes(2) as engine:
        for pid in set(engine.map(engine_tasks.whose, range(8))):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.3)
        assert list(engine.map(engine_tasks.squared, range(5))) == [0, 1, 4, 9, 16]


def processes_of(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(place.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.data import engine_tasks; from xvlm_data.engines import Processes\n"
        "if __name__ == '__main__':\n"
        "    with Processes(2) as engine:\n"
        "        list(engine.map(engine_tasks.waits_for_ever, [Path(sys.argv[1])] * 5))\n"
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        start_new_session=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(processes_of(parent.pid)) >= 3
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 5
        while processes_of(parent.pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert processes_of(parent.pid) == []
    finally:
        for pid in processes_of(parent.pid):
            os.kill(pid, signal.SIGKILL)


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(UserError, match="choose from local, ray"):
        open_engine("spark", 2)
    assert isinstance(open_engine("local", 1), Inline)
