"""Going on with a run: from where, with which settings, at which place of the data."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from xvlm_data.errors import UserError
from xvlm_data.journal import Lock
from xvlm_train.config import PretrainConfig, differences, load_config

if TYPE_CHECKING:
    from xvlm_train.data.stream import Stream
    from xvlm_train.engine.checkpoint import Checkpoint
    from xvlm_train.inputs import Inputs

T = TypeVar("T")

RESUME = "xvlm-train pretrain --resume"
#: The file in a run's folder that is locked while the run goes on.
LOCK = ".lock"

#: Settings with which a run would go on without complaint, and wrongly: by key, what goes wrong.
_SILENT = (
    (
        r"model\.(?!.*(dropout|drop_path|pretrained|initializer_range|temperature)$).*",
        "the weights were trained with the other",
    ),
    (r"data\.image_size", "the weights were trained with the other"),
    (r"tokenizer\..*", "the checkpoint's vocabulary stays"),
    (
        r"(train|data)\.seed|data\.(pool_groups|lanes)|data\.region_as_caption|manifests",
        "rows would come in another order, some of them twice in an epoch and others never",
    ),
)


def find_start(
    resume: str | None, out: Path, out_is_default: bool
) -> tuple[Checkpoint | None, Path]:
    """The checkpoint to go on from, if any, and the run's folder.

    Raises:
        UserError: ``resume`` names nothing that can be resumed.
    """
    from xvlm_train.engine import checkpoint

    if resume is None:
        return None, out
    if resume == "auto":
        return (checkpoint.find(out) if checkpoint.begun(out) else None), out
    found = checkpoint.find(Path(resume))
    if not out_is_default:
        return found, out
    if found.path.parent.name != checkpoint.FOLDER:
        raise UserError(
            f"{found.path} does not lie in a run's folder", "say where to go with --out"
        )
    return found, found.path.parent.parent


def settle_config(
    found: Checkpoint | None,
    preset: str,
    preset_given: bool,
    file: Path | None,
    overrides: list[str],
    official: bool,
    model: Mapping[str, Any] | None = None,
) -> tuple[PretrainConfig, dict[str, str]]:
    """The configuration of the run, and what differs from the checkpoint's.

    Without a preset, a resumed run keeps the checkpoint's settings under what is given anew.
    ``model`` are the settings that an initial model dictates.
    """
    from xvlm_train.saved import CONFIG_FILE

    files = [file] if file else []
    if found is None:
        return load_config(preset, files, overrides, official=official, model=model), {}
    kept = found.path / CONFIG_FILE
    before = load_config(files=[kept])
    if not preset_given:
        files = [kept, *files]
    config = load_config(
        preset if preset_given else None, files, overrides, official=official, model=model
    )
    # The vocabulary's size is the tokenizer's, which comes with the checkpoint.
    config.model.text = replace(config.model.text, vocab=before.model.text.vocab)
    return config, differences(before, config)


def refuse_silent(changes: Mapping[str, str], allowed: Collection[str]) -> None:
    """Stop where a changed setting would make the run wrong without anything showing it.

    Args:
        changes: ``old → new`` by key.
        allowed: keys that may change all the same.

    Raises:
        UserError: names each, why, and how to insist.
    """
    wrong = {
        key: why
        for key in changes
        for pattern, why in _SILENT
        if re.fullmatch(pattern, key) and key not in allowed
    }
    if wrong:
        told = "; ".join(f"{key}: {changes[key]} ({why})" for key, why in wrong.items())
        insist = " ".join(f"--allow-change {key}" for key in wrong)
        raise UserError(
            f"going on with other settings than the checkpoint's: {told}",
            f"give them as they were, or insist with {insist}",
        )


def settle_inputs(given: Inputs, found: Checkpoint | None) -> Inputs:
    """The manifests of the run: as given, or where none are, those of the checkpoint.

    Raises:
        UserError: no training manifest at all.
    """
    if given.shared or given.image_text or given.multi_grained:
        return given
    if found is None:
        raise UserError("no manifest", "give at least one --manifest")
    try:
        before = msgspec.convert(found.state["inputs"], type(given))
    except (KeyError, msgspec.ValidationError) as error:
        what = f"{found.path}: its state.json does not say the manifests ({error})"
        raise UserError(what, "give them with --manifest") from None
    return replace(
        before,
        held_out=given.held_out or before.held_out,
        image_root=given.image_root or before.image_root,
    )


def folder_lock(resume: str | None, out: Path, out_is_default: bool) -> Lock:
    """The lock of the folder that :func:`find_start` will name; not taken yet."""
    from xvlm_train.engine import checkpoint

    folder = out
    if resume not in (None, "auto") and out_is_default:
        given = Path(resume)
        if (given / checkpoint.FOLDER).is_dir():
            folder = given
        else:  # its checkpoints, or one of them
            folder = given.parent if given.name == checkpoint.FOLDER else given.parent.parent
    return Lock(folder / LOCK, f"{folder}: another process trains here", patient=True)


def lock_run(lock: Lock) -> None:
    """Take the lock if there is a run, so that what is found of it is not on the move.

    Raises:
        UserError: another process trains there.
    """
    from xvlm_train.engine import checkpoint

    if checkpoint.has_run(lock.path.parent):
        _take(lock)


def prepare_folder(folder: Path, found: Checkpoint | None, resume: str | None, lock: Lock) -> None:
    """Make the run's folder, take its lock, and set aside what is damaged in it.

    Raises:
        UserError: another run's remains are in it, or data; another process trains there.
    """
    from xvlm_data.mistaken import data_in
    from xvlm_train.engine import checkpoint

    own = found is not None and found.path.resolve().is_relative_to(folder.resolve())
    if checkpoint.has_run(folder) and not own and resume != "auto":
        saved = checkpoint.begun(folder)
        on = f"{RESUME} {folder}" if saved else f"--resume auto --out {folder}"
        state = "already holds a run" if saved else "holds a run that has saved nothing yet"
        raise UserError(f"{folder} {state}", f"go on with it ({on}) or choose another --out")
    if not own and (data := _told(lambda: data_in(folder), folder)) is not None:
        raise UserError(f"{folder}: holds {data}", "choose another --out")
    if not lock.held:
        _take(lock)
        if checkpoint.begun(folder):
            raise UserError(f"{folder}: another process has begun a run here", "run it again")
    if found and own:
        checkpoint.set_aside_damaged(found)


def _take(lock: Lock) -> None:
    folder = lock.path.parent

    def take() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lock.take()

    _told(take, folder)


def _told(work: Callable[[], T], folder: Path) -> T:
    """Do what the operating system may refuse, for every rank to hear of, not only for this one."""
    try:
        return work()
    except OSError as error:
        where = error.filename or folder
        raise UserError(f"{where}: {error.strerror or error}", "give another --out") from error


@dataclass(frozen=True)
class Position:
    """A place in a stream, for any number of ranks and any batch size.

    The order of an epoch's rows depends on how many all ranks together read a step; so with another
    number of them the rest of the epoch is not what the former run would have read.
    """

    epoch: int
    row: int
    """Usable rows of the epoch that all ranks together have had."""
    rows: int
    """Usable rows that an epoch has."""
    together: int = 0
    """Rows a step of all ranks; 0 where an older checkpoint does not say."""

    @classmethod
    def after(cls, batches: int, stream: Stream, world: int) -> Position:
        """Where ``world`` ranks stand in ``stream`` after that many batches each."""
        epoch, within = divmod(batches, stream.steps_per_epoch(world))
        together = stream.rows_per_step(world) * world
        return cls(epoch, within * together, len(stream), together)

    def batches(self, stream: Stream, world: int) -> tuple[int, int]:
        """The batches that bring ``world`` ranks here, and how many rows short of it they are.

        Whole batches only, so up to one global batch less one row.
        """
        together = stream.rows_per_step(world) * world
        per_epoch = stream.steps_per_epoch(world)
        within = min(self.row // together, per_epoch)
        return self.epoch * per_epoch + within, max(0, self.row - within * together)

    def as_state(self) -> dict[str, Any]:
        """Plain values, for :meth:`from_state`."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Position:
        """What :meth:`as_state` gave."""
        return cls(**state)
