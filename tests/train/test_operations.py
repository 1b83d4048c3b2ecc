"""Every command of docs/operations.md, in tiny form.

The commands are taken from the document as they stand; only what is big in them is made small: the
preset becomes the settings of a few thousand weights and twelve steps, 250,000 steps become
thirteen, eight processes two, four nodes two. Tests that need a run of their own name its folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from tests.ports import free_port
from tests.train import small_manifests as small
from tests.train.small_runs import SETTINGS
from xvlm_data.commands import main as data_main
from xvlm_train.commands import main
from xvlm_train.config import load_config
from xvlm_train.engine import checkpoint
from xvlm_train.engine.metrics import read_events, read_metrics

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "operations.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
STEPS = 12
#: A machine whose name leads nowhere finds itself.
HERE = "--local-addr 127.0.0.1"


def block(containing: str) -> str:
    (found,) = [text for text in BLOCKS if containing in text]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the document has it: manifests, and the settings that make things small."""
    folder = tmp_path_factory.mktemp("place")
    rows = {"coco": small.boxed(12), "vg": small.boxed(8, seed=2), "coco_val": small.boxed(5)}
    for name, chosen in rows.items():
        manifest = folder / "manifests" / name
        manifest.mkdir(parents=True)
        small.write(manifest / "manifest-00000.parquet", chosen, name=name)
        listed = [{"file": "manifest-00000.parquet", "rows": len(chosen)}]
        (manifest / "manifest.json").write_text(json.dumps({"schema_version": 1, "shards": listed}))
    tree: dict = {}
    settings = [*SETTINGS, f"train.steps={STEPS}", "train.save_every=2"]
    for setting in settings:
        key, _, value = setting.partition("=")
        branch = tree
        *parents, leaf = key.split(".")
        for part in parents:
            branch = branch.setdefault(part, {})
        branch[leaf] = yaml.safe_load(value)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return folder


def smaller(text: str, out: str | None = None) -> str:
    text = re.sub(r"--preset base", "--preset tiny --config tiny.yaml", text)
    text = re.sub(r"--nproc_per_node 8", "--nproc_per_node 2", text)
    if out is not None:
        text = text.replace("runs/4m", out)
    python = shlex.quote(sys.executable)
    text = text.replace("torchrun ", f"{python} -m torch.distributed.run {HERE} ")
    return text.replace("-m xvlm_train ", "-m tests.train.ranks ")


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def in_this_process(command: str, place: Path) -> None:
    """A command of ours without the cost of starting Python."""
    program, *arguments = shlex.split(command)
    assert program in ("xvlm-train", "xvlm-data"), command
    with inside(place):
        result = CliRunner().invoke(main if program == "xvlm-train" else data_main, arguments)
    assert result.exit_code == 0, result.output + str(result.exception)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


@contextlib.contextmanager
def started(command: str, place: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """The command's process; whatever of it is left at the end is killed."""
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=place,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            for left in (*children(process), process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
            process.communicate()


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the file is there, which the process writes."""
    deadline = time.monotonic() + 300
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {path.name} after five minutes"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """The run of the first section, begun and, with the same line, found to be done."""
    command = smaller(block("coco_val --resume auto").strip())
    in_this_process(command, place)
    found = place / "runs" / "4m"
    written = (found / "checkpoints" / "latest").stat().st_mtime_ns
    assert checkpoint.find(found).step == STEPS
    in_this_process(command, place)
    assert (found / "checkpoints" / "latest").stat().st_mtime_ns >= written
    assert checkpoint.find(found).step == STEPS
    return found


def test_no_block_is_left_out() -> None:
    """A new command in the document needs a line here."""
    known = (
        "coco_val --resume auto",
        "torchrun --standalone --nproc_per_node 8 --max-restarts",
        "torchrun --nnodes",
        "#SBATCH",
        "xvlm-train report",
        "sha256sum",
        "--set optim.lr=2e-4",
        "train.sharding=fsdp",
        "export runs/sharded",
        "xvlm-train import",
    )
    assert [text for text in BLOCKS if sum(key in text for key in known) != 1] == []
    assert len(BLOCKS) == len(known)


def test_reports_checks_and_weights_in_and_out(run: Path, place: Path) -> None:
    for command in block("xvlm-train report").splitlines():
        in_this_process(command, place)
    assert (run / "report.html").exists() and (place / "losses.png").exists()
    with inside(place):
        subprocess.run(["bash", "-c", block("sha256sum")], check=True)
    for command in block("xvlm-train import").splitlines():
        # The initial model says what it is; everything else may still be small.
        command = command.replace("mine.th --preset base", "mine.th --preset tiny --config t.yaml")
        settings = yaml.safe_load((run / "config.yaml").read_text())
        chosen = {name: settings[name] for name in ("model", "data")}
        (place / "t.yaml").write_text(yaml.safe_dump(chosen))
        tiny = yaml.safe_load((place / "tiny.yaml").read_text())
        (place / "rest.yaml").write_text(
            yaml.safe_dump({k: v for k, v in tiny.items() if k not in ("model", "tokenizer")})
        )
        in_this_process(command.replace("--preset base", "--config rest.yaml"), place)
    first = load_file(place / "models" / "mine" / "model.safetensors")
    again = load_file(place / "models" / "again" / "model.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert checkpoint.find(place / "runs" / "more").step == STEPS


def test_going_on_with_other_settings(run: Path, place: Path) -> None:
    command = block("--set optim.lr=2e-4").strip()
    steps, base = re.search(r"--steps (\d+)", command), load_config("base")
    assert steps is not None and int(steps[1]) > base.train.steps, "it would have nothing to do"
    in_this_process(command.replace(steps[0], f"--steps {STEPS + 1}"), place)
    assert checkpoint.find(run).step == STEPS + 1


def test_averaged_weights_of_a_run_that_was_begun_for_them(place: Path) -> None:
    """What the text beside the commands says of ``--ema``."""
    (setting,) = re.findall(r"`(--set optim\.ema=[\d.]+)`", DOCUMENT.read_text(encoding="utf-8"))
    begin = smaller(block("coco_val --resume auto").strip(), "runs/averaged")
    in_this_process(f"{begin} --steps 2 {setting}", place)
    (evaluate,) = [line for line in block("xvlm-train report").splitlines() if "evaluate" in line]
    in_this_process(f"{smaller(evaluate, 'runs/averaged')} --ema", place)


def test_torchrun_starts_again_when_a_rank_is_killed(place: Path) -> None:
    out = place / "runs" / "elastic"
    command = smaller(
        block("torchrun --standalone --nproc_per_node 8 --max-restarts").strip(), "runs/elastic"
    )
    with started(f"{command} --steps 60", place) as process:
        wait_for(out / "checkpoints" / "latest", process)
        (victim,) = [c for c in children(process) if c.environ().get("RANK") == "1"]
        victim.kill()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "Traceback" not in output.replace("Traceback : Signal 9", ""), output
    starts = [event for event in read_events(out) if event["event"] == "start"]
    assert len(starts) == 2 and 2 <= starts[1]["step"] < 60
    assert [line["step"] for line in read_metrics(out) if "lr" in line] == list(range(1, 61))
    ranks = [load_file(out / f"rank{rank}.safetensors") for rank in range(2)]
    saved = load_file(checkpoint.find(out).path / "model.safetensors")
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    assert all(torch.equal(ranks[0][name], saved[name]) for name in ranks[0])


def test_two_nodes_train_sharded(place: Path) -> None:
    """Both sections at once: a node of the many has one process, and the model is sharded."""
    port = free_port()
    text = block("torchrun --nnodes").strip()
    sharded = re.search(r"--set train.sharding=fsdp", block("train.sharding=fsdp"))
    assert sharded is not None
    text = text.replace("--nnodes 4 --nproc_per_node 8", "--nnodes 2 --nproc_per_node 1")
    text = text.replace(":29500", f":{port}")
    command = f"{smaller(text, 'runs/sharded')} {sharded[0]}"
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(started(command, place, HEAD_NODE="127.0.0.1")) for _ in range(2)
        ]
        outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    found = checkpoint.find(place / "runs" / "sharded")
    assert found.step == STEPS and found.state["world_size"] == 2
    in_this_process(block("export runs/sharded").strip(), place)
    assert (place / "models" / "sharded" / "model.safetensors").exists()


SRUN = """#!/bin/bash
# Two tasks of this machine in the place of Slurm's; passes SIGTERM on and tells the worst status.
shift
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" & pids+=($!)
done
trap 'kill -TERM "${pids[@]}"' TERM
worst=0
for pid in "${pids[@]}"; do
    wait "$pid"; status=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; status=$?; done
    if [ $status -gt $worst ]; then worst=$status; fi
done
exit $worst
"""


def test_slurm_requeues_a_job_that_was_told_to_stop(place: Path) -> None:
    """The script as it stands, with commands of Slurm that act on this machine."""
    stubs = place / "slurm"
    stubs.mkdir()
    (stubs / "srun").write_text(SRUN)
    (stubs / "scontrol").write_text(
        '#!/bin/bash\nif [ "$1" = show ]; then echo 127.0.0.1; '
        f'else echo "$@" >> {stubs}/told; fi\n'
    )
    (stubs / "xvlm-train").write_text(f'#!/bin/bash\nexec {sys.executable} -m xvlm_train "$@"\n')
    for stub in ("srun", "scontrol", "xvlm-train"):
        (stubs / stub).chmod(0o755)
    port = free_port()
    script = smaller(block("#SBATCH"), "runs/slurm").replace("29500", str(port))
    script = script.replace("--resume auto", "--resume auto --steps 2000 --set data.workers=1")
    job = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_ID": "7",
    }
    with started(script, place, **job) as process:
        wait_for(place / "runs" / "slurm" / "checkpoints" / "latest", process)
        # Slurm signals every process of the step: ranks, and their loader workers too.
        for child in children(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "srun" not in " ".join(child.cmdline()[:2]):
                    child.terminate()
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 75, output
    assert "Traceback" not in output, output
    assert (stubs / "told").read_text() == "requeue 7\n"
    run = place / "runs" / "slurm"
    found = checkpoint.find(run)
    (end,) = [event for event in read_events(run) if event["event"] == "end"]
    assert end["reason"] == "preempted" and end["step"] == found.step < 2000
    assert f"stopped after step {found.step}" in output
