"""Saving while the training goes on.

A checkpoint is copied to host memory by a thread during the next forward and backward pass, which
only read weights; the next update waits for the copies, and nothing for the disk.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from xvlm_train.engine import checkpoint
from xvlm_train.engine.checkpoint import Retention
from xvlm_train.engine.weights import local_part

Parts = Mapping[str, Mapping[str, Tensor]]
_ALIGNMENT = 64


class Saver:
    """Writes checkpoints of a run in a thread, one at a time.

    Args:
        run: the run's folder.
        write_extras: writes the configuration and the tokenizer into the given folder.
        keep: which checkpoints stay.
        say: tells the person at the console.
        is_main: the rank that writes what is not sharded.
        sharded: every rank writes its part; all ranks then make the same calls.
    """

    def __init__(
        self,
        run: Path,
        *,
        write_extras: Callable[[Path], None],
        keep: Retention,
        say: Callable[[str], None],
        is_main: bool = True,
        sharded: bool = False,
    ) -> None:
        self._run, self._write_extras, self._keep, self._say = run, write_extras, keep, say
        self._is_main, self._sharded = is_main, sharded
        # Of its own, because the training goes on with its collectives meanwhile.
        self._group: Any = dist.new_group(backend="gloo") if sharded else None
        self._copies = _HostCopies()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.waited = 0.0
        """Seconds that the training has waited for checkpoints so far."""

    def start(self, parts: Parts, state: dict[str, Any], volatile: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        """Begin to save; returns at once, unless the one before is not written yet.

        Args:
            parts: tensors by the part of the checkpoint (model, optimizer, …) and name; all but
                the volatile ones stay as they are until :meth:`before_update`.
            state: plain values; ``step`` is required.
            volatile: names that a forward pass may change, copied here and now.

        Raises:
            OSError: the one before could not be written.
        """
        self.finish()
        if not self._is_main and not self._sharded:
            return
        started = time.monotonic()
        self._copies.plan(parts, volatile)
        self._thread = threading.Thread(
            target=self._save, args=(state,), name="checkpoint", daemon=True
        )
        self._thread.start()
        self.waited += time.monotonic() - started

    def before_update(self) -> None:
        """Let the copies be complete before the optimiser changes what they are of."""
        if self._thread is not None:
            started = time.monotonic()
            self._copies.wait()
            self.waited += time.monotonic() - started

    @property
    def failed(self) -> bool:
        """Whether the last checkpoint could not be written; :meth:`finish` says why."""
        return self._error is not None

    def finish(self) -> None:
        """Wait until the checkpoint is written.

        Raises:
            OSError: it could not be; what was there before is untouched.
        """
        if self._thread is not None:
            started = time.monotonic()
            self._thread.join()
            self._thread = None
            self.waited += time.monotonic() - started
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _save(self, state: dict[str, Any]) -> None:
        partial = None
        try:
            parts = self._copies.make()
            partial = checkpoint.begin(self._run, state["step"]) if self._is_main else None
            folder = self._agree(partial)
            for name, tensors in parts.items():
                self._write(name, tensors, folder)
            if partial is not None:
                self._write_extras(partial)
                path = checkpoint.commit(self._run, partial, state, self._keep)
                self._say(f"saved {path}")
        except SafetensorError as error:  # safetensors wraps the operating system's errors
            self._error = OSError(f"{partial}: {error}")
        except BaseException as error:  # told by the training thread
            self._error = error
        finally:
            self._copies.release()
            if partial is not None:
                checkpoint.discard(partial)

    def _agree(self, partial: Path | None) -> Path:
        """The folder that rank 0 has made; waits until it is there."""
        box = [partial]
        if self._group is not None:
            dist.broadcast_object_list(box, group=self._group)
        assert box[0] is not None
        return box[0]

    def _write(self, part: str, tensors: Mapping[str, Tensor], folder: Path) -> None:
        if self._group is None:
            save_file(dict(tensors), folder / (part + checkpoint.SUFFIX))
            return
        dcp.save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder / part), save_distributed=True),
            process_group=self._group,
        )


class _HostCopies:
    """Copies of tensors in host memory that is kept from one checkpoint to the next."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._sources: dict[str, dict[str, Tensor]] = {}
        self._ready: torch.cuda.Event | None = None
        self._copied: torch.cuda.Event | None = None
        self._stream: torch.cuda.Stream | None = None
        self._done = threading.Event()

    def plan(self, parts: Parts, volatile: set[str]) -> None:
        """Remember what to copy, as it is at this point of the current stream."""
        self._done.clear()
        self._sources = {
            part: {
                name: tensor.detach().clone() if name in volatile else tensor.detach()
                for name, tensor in tensors.items()
            }
            for part, tensors in parts.items()
        }
        first = next((t for tensors in parts.values() for t in tensors.values()), None)
        if first is not None and first.is_cuda:
            self._ready = torch.cuda.Event()
            self._ready.record()
            self._copied = torch.cuda.Event()
            if self._stream is None:
                self._stream = torch.cuda.Stream(first.device)

    def make(self) -> dict[str, dict[str, Tensor]]:
        """Copy; in a thread other than the one that trains."""
        try:
            places = self._places()
            if self._stream is None:
                self._copy(places)
            else:
                assert self._ready is not None and self._copied is not None
                with torch.cuda.stream(self._stream):
                    self._stream.wait_event(self._ready)
                    self._copy(places)
                    self._copied.record()
        finally:
            self._done.set()
        if self._copied is not None:
            self._copied.synchronize()
        return {
            part: {name: _like(places[part][name], source) for name, source in tensors.items()}
            for part, tensors in self._sources.items()
        }

    def wait(self) -> None:
        """Let what follows on the current stream come after the copies."""
        self._done.wait()
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def release(self) -> None:
        """Forget what was copied, but not the memory."""
        self._sources = {}

    def _copy(self, places: dict[str, dict[str, Tensor]]) -> None:
        for part, tensors in self._sources.items():
            for name, source in tensors.items():
                places[part][name].copy_(local_part(source), non_blocking=True)

    def _places(self) -> dict[str, dict[str, Tensor]]:
        """Room for each tensor, all of it in one piece of (for a GPU: page-locked) memory."""
        offsets: dict[str, dict[str, tuple[int, int]]] = {}
        end = 0
        for part, tensors in self._sources.items():
            offsets[part] = {}
            for name, source in tensors.items():
                local = local_part(source)
                size = local.numel() * local.element_size()
                offsets[part][name] = end, size
                end += math.ceil(size / _ALIGNMENT) * _ALIGNMENT
        if self._buffer.numel() < end:
            self._buffer = torch.empty(end, dtype=torch.uint8, pin_memory=self._stream is not None)
        return {
            part: {
                name: self._buffer[start : start + size]
                .view(local_part(self._sources[part][name]).dtype)
                .view(local_part(self._sources[part][name]).shape)
                for name, (start, size) in found.items()
            }
            for part, found in offsets.items()
        }


def _like(copy: Tensor, source: Tensor) -> Tensor:
    """The copy of this rank's part of ``source``, as a part of the whole."""
    if not isinstance(source, DTensor):
        return copy
    mesh = source.device_mesh
    if mesh.device_type != "cpu":
        mesh = dist.device_mesh.DeviceMesh("cpu", mesh.mesh, mesh_dim_names=mesh.mesh_dim_names)
    return DTensor.from_local(
        copy,
        mesh,
        source.placements,
        run_check=False,
        shape=source.shape,
        stride=source.stride(),
    )
