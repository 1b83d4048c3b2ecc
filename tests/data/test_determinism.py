"""The bytes of a manifest do not depend on workers, engine, or how raw files are cut."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data import engine_tasks
from tests.data.raw_releases import Silent
from tests.data.test_build import mixed_coco
from xvlm_data import reading
from xvlm_data.build import build
from xvlm_data.build_options import BuildOptions
from xvlm_data.engines import Engine, Inline, Processes, open_engine
from xvlm_data.errors import UserError
from xvlm_data.raw import json_arrays
from xvlm_data.sample.annotations.plan import Request
from xvlm_data.sample.annotations.write import write_annotations

#: Scale and options of builds that have several ranges and shards.
BUILDS: dict[str, tuple[float, dict[str, Any]]] = {
    "coco": (0.001, {"check": "none", "shard_rows": 30}),
    "vg": (0.001, {"check": "none", "shard_rows": 30}),
    "objects365": (0.0003, {"check": "none", "shard_rows": 150}),
    "cc3m": (0.0005, {"images": "url", "shard_rows": 400}),
    "sbu": (0.001, {"images": "url", "shard_rows": 250}),
    "openimages": (0.0002, {"check": "none", "shard_rows": 150}),
    "cc12m": (0.0001, {"images": "url", "shard_rows": 300}),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    for source in ("coco", *BUILDS):
        if not (root / source).exists():
            request = Request(BUILDS[source][0], 3, 0.05)
            write_annotations(root, request, [source], stage=Silent().reading)
    return root


def contents(
    source: str, root: Path, out: Path, engine: Engine, **options: Any
) -> dict[str, bytes]:
    """The files of a build."""
    build(source, root, out, progress=Silent(), options=BuildOptions(**options), engine=engine)
    assert not (out / ".building").exists()
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def processes() -> Iterator[Engine]:
    with Processes(2) as engine:
        yield engine


def cut_small(patch: pytest.MonkeyPatch, root: Path, divisor: int) -> None:
    """Cut the largest file of a release into so many ranges."""
    size = max(path.stat().st_size for path in root.rglob("*") if path.is_file())
    patch.setattr(reading, "RANGE", size // divisor)


@pytest.mark.parametrize("source", BUILDS)
def test_bytes_are_the_same_whoever_works(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: Engine, source: str
) -> None:
    options = BUILDS[source][1]
    root = raw / source
    cut_small(monkeypatch, root, 9)
    one = contents(source, root, tmp_path / "1", Inline(), **options)
    assert len([name for name in one if name.endswith(".parquet")]) > 3
    assert contents(source, root, tmp_path / "2", processes, **options) == one


@pytest.mark.parametrize("which", ["manifest", "rejects"])
@pytest.mark.parametrize("source", BUILDS)
def test_bytes_are_the_same_however_files_are_cut(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, which: str
) -> None:
    options = BUILDS[source][1]
    root = raw / source
    whole = contents(source, root, tmp_path / "whole", Inline(), **options)
    for divisor in (3, 13):
        cut_small(monkeypatch, root, divisor)
        monkeypatch.setattr(json_arrays, "PIECE", reading.RANGE // 4)
        found = contents(source, root, tmp_path / str(divisor), Inline(), **options)
        assert found.keys() == whole.keys()
        differing = [name for name in whole if found[name] != whole[name]]
        assert [name for name in differing if name.startswith(which)] == []


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_so_are_those_with_images(tmp_path: Path, processes: Engine, images: Any) -> None:
    root = mixed_coco(tmp_path / "raw")
    more: dict[str, Any] = {"images": images, "shard_rows": 7}
    if images == "embed":
        more |= {"shortest_side": 40}
    one = contents("coco", root, tmp_path / "1", Inline(), **more)
    assert contents("coco", root, tmp_path / "2", processes, **more) == one


@pytest.fixture(scope="module")
def ray() -> Iterator[Engine]:
    pytest.importorskip("ray")
    with open_engine("ray", 2) as engine:
        yield engine


@pytest.mark.ray
@pytest.mark.parametrize("source", ["coco", "cc3m"])
def test_ray_gives_the_same_bytes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray: Engine, source: str
) -> None:
    options = BUILDS[source][1]
    cut_small(monkeypatch, raw / source, 9)
    expected = contents(source, raw / source, tmp_path / "one", Inline(), **options)
    assert contents(source, raw / source, tmp_path / "ray", ray, **options) == expected


@pytest.mark.ray
def test_ray_keeps_what_engines_promise(tmp_path: Path, ray: Engine) -> None:
    assert list(ray.map(engine_tasks.slow_first, range(6))) == list(range(6))
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = ray.map(engine_tasks.squared, tasks())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(taken) <= 3 + ray.workers + 1
    with pytest.raises(UserError) as caught:
        list(ray.map(engine_tasks.refused, range(9)))
    assert str(caught.value) == "raw/x.json: broken\u2028 here; download it again"
    with pytest.raises(ZeroDivisionError):
        list(ray.map(engine_tasks.divided, range(9)))
    once = [(number, tmp_path / "died") for number in range(6)]
    assert list(ray.map(engine_tasks.dies_once, once)) == list(range(6))
    assert (tmp_path / "died").exists()
    with pytest.raises(UserError, match="a Ray worker died again and again") as caught:
        list(ray.map(engine_tasks.dies, range(4)))
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_a_cluster_that_is_not_there_is_one_clear_line() -> None:
    pytest.importorskip("ray")
    code = (
        "from xvlm_data.engines import open_engine; from xvlm_data.errors import UserError\n"
        "try:\n    open_engine('ray', 2, '127.0.0.1:1').__enter__()\n"
        "except UserError as error:\n    print('told:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=Path.cwd()
    )
    assert done.stdout.startswith("told: no Ray cluster at 127.0.0.1:1"), done


@pytest.mark.ray
def test_standard_output_is_for_the_answer_alone(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.data import engine_tasks\n"
        "from xvlm_data.engines import open_engine\n"
        "with open_engine('ray', 2) as engine:\n"
        "    tasks = [(n, Path(sys.argv[1])) for n in range(4)]\n"
        "    found = list(engine.map(engine_tasks.dies_once, tasks))\n"
        "    time.sleep(2)  # Ray tells of the dead a little later\n"
        "print(found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "died"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert done.stdout == "[0, 1, 2, 3]\n"
