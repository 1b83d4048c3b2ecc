"""The processes of a run: signals at any moment, SIGKILL, and two runs in one folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tests.ports import free_port
from tests.train.small_runs import SETTINGS, arguments, refused, xvlm
from xvlm_data import journal
from xvlm_data.errors import UserError
from xvlm_data.journal import Lock
from xvlm_train.engine import checkpoint
from xvlm_train.engine.metrics import read_events
from xvlm_train.engine.preemption import ending_at_once, stop_flag
from xvlm_train.resume import LOCK, prepare_folder

ROOT = Path(__file__).resolve().parents[2]
#: On a machine that does much else; nothing takes so long that is as it should be.
PATIENCE = 120
BUSY = "another process trains here"


def endless(data: Path, out: Path, *more: str, workers: int = 0) -> list[str]:
    settings = [*SETTINGS, "train.save_every=2", f"data.workers={workers}"]
    return arguments(data, out, "--steps", "100000", *more, settings=settings)


@contextlib.contextmanager
def started(line: list[str], program: str = "", **more: str) -> Iterator[subprocess.Popen[str]]:
    """``xvlm-train`` in another process, or a program that is given; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, *(["-c", program] if program else ["-m", "xvlm_train"]), *line],
        cwd=ROOT,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background lets them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        for one in family(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.kill()
        process.communicate()


def family(process: subprocess.Popen[str]) -> set[psutil.Process]:
    try:
        return set(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def loaders(process: subprocess.Popen[str]) -> set[psutil.Process]:
    """What the loader starts: the server that forks workers, these, and Python's tracker."""
    found = set()
    for one in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "multiprocessing" in " ".join(one.cmdline()):
                found.add(one)
    return found


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_for_a_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: (out / "checkpoints" / "latest").exists(), process)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its status and what it said of errors."""
    said = process.communicate(timeout=PATIENCE)[1]
    return process.returncode, said


# --- killed -------------------------------------------------------------------------------------


def test_a_killed_run_leaves_no_process(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(endless(data, out, workers=1)) as process:
        wait_for_a_checkpoint(out, process)
        others = loaders(process)
        assert len(others) >= 3  # a worker at least, the server that forks it, and the tracker
        process.kill()
        process.wait()
        left = psutil.wait_procs(others, timeout=20)[1]
        for one in left:
            one.kill()
        assert left == []


# --- told to stop -------------------------------------------------------------------------------

#: The command, but importing torch takes a minute.
SLOW = """
import sys, time
from importlib.abc import MetaPathFinder

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("importing", flush=True)
            time.sleep(60)

sys.meta_path.insert(0, Slow())
from xvlm_train.commands import main
main(prog_name="xvlm-train")
"""


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [
        (signal.SIGTERM, 75, "stopped by SIGTERM before the first step\n"),
        (signal.SIGUSR1, 75, "stopped by SIGUSR1 before the first step\n"),
        (signal.SIGINT, 130, "error: interrupted\n"),
    ],
)
def test_told_to_stop_while_torch_is_imported(
    data: Path, tmp_path: Path, number: signal.Signals, status: int, told: str
) -> None:
    with started(endless(data, tmp_path / "run"), SLOW) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert ended(process) == (status, told)


def test_told_to_stop_while_other_ranks_are_waited_for(data: Path, tmp_path: Path) -> None:
    """Where Python's own handlers would not be called for half an hour."""
    port = free_port()
    given = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def listens() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return True
        return False

    with started(endless(data, tmp_path / "run"), **given) as process:
        wait_until(listens, process)
        time.sleep(0.2)  # it has a place to meet; now it waits there
        process.terminate()
        assert ended(process) == (75, "stopped by SIGTERM before the first step\n")


def test_told_to_stop_again_and_again_until_it_has_ended(data: Path, tmp_path: Path) -> None:
    """Also after the last step, when workers are waited for and Python winds itself up."""
    out = tmp_path / "run"
    with started(endless(data, out, workers=1)) as process:
        wait_for_a_checkpoint(out, process)
        while process.poll() is None:
            process.terminate()
            time.sleep(0.002)
        status, said = ended(process)
    assert status == 75, said
    assert f"stopped after step {checkpoint.find(out).step}" in said
    assert [event["event"] for event in read_events(out)] == ["start", "end"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_workers_that_are_told_while_they_start_let_it_pass(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A cluster tells every process of a job, however young; the first step still needs them."""
    out = tmp_path / "run"
    with started(endless(data, out, workers=1)) as process:
        told: set[psutil.Process] = set()
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            for one in loaders(process) - told:
                if not told:
                    process.send_signal(number)
                told.add(one)
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(number)
            time.sleep(0.001)
        status, said = ended(process)
    assert status == (130 if number == signal.SIGINT else 75), said
    assert "stopped after step 1;" in said and "Traceback" not in said
    assert len(told) >= 3  # a worker at least, the server that forks it, and the tracker


#: A worker's beginning, as the server forks it; then it tells whether a first SIGTERM has come.
WORKER = """
import signal, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
from xvlm_train.data.loader import _start_worker
print("blocked", flush=True)
time.sleep(0.2)
_start_worker(0)
while signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
    time.sleep(0.01)
print("told once", flush=True)
time.sleep(60)
"""


def test_a_worker_that_is_told_twice_ends() -> None:
    with started([], WORKER) as process:
        assert process.stdout is not None
        for line in ("blocked\n", "told once\n"):
            assert process.stdout.readline() == line
            process.terminate()
        assert ended(process)[0] == -signal.SIGTERM


def test_signals_are_as_before_after_the_command() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with ending_at_once():
        assert signal.getsignal(signal.SIGTERM) not in before
        with stop_flag():
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # after the training: nothing is left to be stopped
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    assert signal.set_wakeup_fd(-1) == -1


# --- two in one folder --------------------------------------------------------------------------


def test_one_folder_is_one_run_at_a_time(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with started(endless(data, out)) as process:
        wait_for_a_checkpoint(out, process)
        ways = (
            arguments(data, out, "--resume", "auto"),
            arguments(data, out),
            ["pretrain", "--resume", str(out)],
            ["pretrain", "--resume", str(out / "checkpoints")],
            ["pretrain", "--resume", str(out / "checkpoints" / "step_00000002")],
        )
        for line in ways:
            assert refused(*line).startswith(f"error: {out}: {BUSY}; ")
        done = checkpoint.find(out).step
        wait_until(lambda: checkpoint.find(out).step > done, process)  # and nothing harmed it
        process.kill()
        process.wait()
        stopped = checkpoint.find(out).step
    result = xvlm(*arguments(data, out, "--resume", "auto", "--steps", str(stopped + 1)))
    assert result.exit_code == 0, result.stderr
    assert f"going on from step {stopped}" in result.stderr
    # One that ends as it should leaves the folder to the next as well.
    assert xvlm("pretrain", "--resume", str(out), "--steps", str(stopped + 2)).exit_code == 0


def test_a_folder_where_nothing_was_written_yet_is_taken_too(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    lock = Lock(out / LOCK, "mine")
    lock.take()
    assert BUSY in refused(*arguments(data, out, "--resume", "auto"))
    lock.release()
    assert [path.name for path in out.iterdir()] == [LOCK]


def test_every_rank_that_comes_second_says_so(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    lock = Lock(out / LOCK, "mine")
    lock.take()
    given = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with contextlib.ExitStack() as stack:
        line = endless(data, out, "--resume", "auto")
        ranks = [
            stack.enter_context(started(line, RANK=rank, LOCAL_RANK=rank, **given))
            for rank in ("0", "1")
        ]
        for process, prefix in zip(ranks, ("error", "error (rank 1)"), strict=True):
            status, said = ended(process)
            assert status == 2, said
            assert said.startswith(f"{prefix}: {out}: {BUSY}; ") and said.count("\n") == 1
    lock.release()


def test_a_run_that_began_between_looking_and_locking_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_00000002").mkdir(parents=True)
    lock = Lock(tmp_path / LOCK, "mine")
    with pytest.raises(UserError, match="another process has begun a run here"):
        prepare_folder(tmp_path, None, "auto", lock)
    lock.release()


def test_without_write_permission_all_ranks_are_told(tmp_path: Path) -> None:
    """An error of the operating system alone would leave the others waiting for rank 0."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        prepare_folder(tmp_path / "file" / "run", None, None, Lock(tmp_path / "file/run/l", ""))


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A file system such as Lustre, mounted without locks; and hearts that beat faster."""

    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(journal, "_HEARTBEAT", 0.1)
    monkeypatch.setattr(journal, "_DEAD", 3.0)
    return SimpleNamespace(dead=3.0)


def test_without_locks_of_the_kernel_the_holder_beats(
    tmp_path: Path, no_flock: SimpleNamespace
) -> None:
    first, second = (Lock(tmp_path / LOCK, f"{tmp_path}: {BUSY}", patient=True) for _ in range(2))
    first.take()
    with pytest.raises(UserError, match=BUSY):
        second.take()
    assert first.held and not second.held
    first.release()
    began = time.monotonic()
    second.take()
    assert time.monotonic() - began < no_flock.dead  # no need to wait for one that has ended
    second.release()
    assert not (tmp_path / LOCK).exists()


def test_a_beat_that_stays_away_frees_the_folder(tmp_path: Path, no_flock: SimpleNamespace) -> None:
    """Its own predecessor, killed by torchrun a moment ago, does not keep a rank from starting."""
    dead, next_one = (Lock(tmp_path / LOCK, BUSY, patient=True) for _ in range(2))
    dead._beat()
    with pytest.raises(UserError, match="a killed one frees it after"):
        Lock(tmp_path / LOCK, BUSY).take()  # of those that do not wait
    next_one.take()
    assert next_one.held
    next_one.release()
