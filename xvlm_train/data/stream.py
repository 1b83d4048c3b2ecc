"""The two inputs of a pre-training step, as functions of the step.

``stream.batch(k, rank, world)`` is the k-th batch of a process: the same rows, crops and masks
whatever ran before, in whichever process, so loader workers and resuming need no state.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np

from xvlm_data.errors import UserError
from xvlm_data.images.decode import ImageError
from xvlm_data.manifest import Manifest
from xvlm_data.schema import IMAGE, OBJECT, REGION
from xvlm_train.data.batch import Batch
from xvlm_train.data.collate import collate
from xvlm_train.data.config import DataConfig
from xvlm_train.data.order import SAMPLE, Order, generator
from xvlm_train.data.rows import RowGroup, count_rows, read_rows
from xvlm_train.data.samples import BadRow, Sample, image_text_sample, multi_grained_sample
from xvlm_train.data.tokenizer import Tokenizer

#: Rows tried in the place of one that cannot be used, before the place stays empty.
STAND_INS = 4


class Stream:
    """Rows of some manifests as image-text or multi-grained batches.

    An epoch is ``steps_per_epoch`` batches in which no row comes twice; the rows that do not fill
    a last batch wait for the next epoch, in a new order. A row that cannot be used (unreadable
    image, no text, no box) is counted in ``Batch.skipped`` and replaced by the row at its place
    in the next global batch; where there is none, the batch is smaller.

    Memory: ``config.pool_groups`` + 1 row groups a process, with image bytes where embedded.

    Args:
        manifests: the rows of all of them are shuffled together.
        config: see :class:`DataConfig`.
        tokenizer: for the texts.
        grid: the model's patches, (rows, columns).
        multi_grained: rows with regions or objects (else: rows with captions, or also regions
            with ``config.region_as_caption``).
        skip_unusable: leave out manifests that have rows, but none of use here, and name them in
            ``unused``, instead of refusing them.

    Raises:
        UserError: an empty manifest; one without a usable row; no usable row at all; one of web
            addresses that are still to be downloaded.
    """

    def __init__(
        self,
        manifests: Sequence[Manifest],
        config: DataConfig,
        tokenizer: Tokenizer,
        grid: tuple[int, int],
        *,
        multi_grained: bool,
        skip_unusable: bool = False,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.grid = grid
        self.multi_grained = multi_grained
        self.unused: list[str] = []
        self._manifests = list(manifests)
        self._granularities = usable_granularities(config, multi_grained)
        self._groups: list[tuple[int, int, int]] = []
        counts: list[int] = []
        for m, manifest in enumerate(self._manifests):
            manifest.require_images()
            usable = self._count(manifest)
            if not any(usable.values()):
                problem = self._unusable(manifest)
                if not skip_unusable or not len(manifest):
                    raise problem
                self.unused.append(_name(manifest))
                continue
            for (shard, group), rows in usable.items():
                self._groups.append((m, shard, group))
                counts.append(rows)
        if not counts:
            kind = "regions or objects" if multi_grained else "captions"
            raise UserError(
                f"no manifest has {kind} ({', '.join(self.unused) or 'none given'})",
                "give one that has",
            )
        self._order = Order(
            np.array(counts, dtype=np.int64), config.pool_groups, config.seed, int(multi_grained)
        )
        self._cache: OrderedDict[int, tuple[RowGroup, np.ndarray]] = OrderedDict()

    def __len__(self) -> int:
        """Usable rows."""
        return len(self._order)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": OrderedDict()}  # workers read for themselves

    def rows_per_step(self, world: int = 1) -> int:
        """Rows one process takes a step: as configured, or fewer when the data is smaller.

        Raises:
            UserError: not one row for each process.
        """
        wanted = self.config.max_images if self.multi_grained else self.config.batch_size
        rows = min(wanted, len(self) // world)
        if rows == 0:
            raise UserError(
                f"{len(self)} usable rows for {world} processes", "give more data or fewer ranks"
            )
        return rows

    def steps_per_epoch(self, world: int = 1) -> int:
        """Batches of one process in which no row comes twice."""
        return len(self) // (self.rows_per_step(world) * world)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of process ``rank`` of ``world`` at a step, counted from 0 without end.

        Ranks take disjoint parts of one global batch; with batch sizes to match, that is the same
        global batch for any ``world``.

        Raises:
            UserError: no row of the batch, nor any that stood in, could be used.
            ManifestError: a manifest changed or broke after it was opened.
        """
        rows = self.rows_per_step(world)
        epoch, within = divmod(step, self.steps_per_epoch(world))
        skipped: Counter[str] = Counter()
        samples: list[Sample] = []
        for slot in range(rank * rows, (rank + 1) * rows):
            sample = self._sample(epoch, within * rows * world, slot, rows * world, skipped)
            if sample is not None:
                samples.append(sample)
        if not samples:
            reasons = ", ".join(f"{reason} {n}" for reason, n in sorted(skipped.items()))
            raise UserError(
                f"step {step}: no usable row in a whole batch ({reasons})",
                "fetch the images with `xvlm-data download`"
                if skipped["not_downloaded"]
                else "see `xvlm-data inspect --validate`; were the images moved (--image-root)?",
            )
        return collate(
            samples,
            self.tokenizer,
            self.config,
            self.grid,
            multi_grained=self.multi_grained,
            skipped=skipped,
        )

    def _sample(
        self, epoch: int, first: int, slot: int, total: int, skipped: Counter[str]
    ) -> Sample | None:
        """The sample of one place of the global batch at ``first``, or of a row that stands in.

        Stand-ins lie outside the global batch, different ones for every place of it, so that no
        row can come twice in a batch, on whichever ranks.
        """
        spare = len(self) - total
        positions = [first + slot]
        for turn in range(STAND_INS):
            beyond = slot + turn * total
            if beyond < spare:
                positions.append((first + total + beyond) % len(self))
        make = multi_grained_sample if self.multi_grained else image_text_sample
        for position in positions:
            group, nth = self._order.locate(epoch, position)
            rows, usable = self._row_group(group)
            rng = generator(self.config.seed, int(self.multi_grained), SAMPLE, epoch, position)
            try:
                return make(rows.row(int(usable[nth])), self.config, rng)
            except (BadRow, ImageError) as error:
                skipped[error.reason] += 1
        return None

    def _row_group(self, number: int) -> tuple[RowGroup, np.ndarray]:
        """A decoded row group and its usable rows, from a least-recently-used cache."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        while len(self._cache) > self.config.pool_groups:
            self._cache.popitem(last=False)
        manifest, shard, group = self._groups[number]
        rows = read_rows(self._manifests[manifest], shard, group)
        self._cache[number] = rows, rows.with_any(self._granularities)
        return self._cache[number]

    def _count(self, manifest: Manifest) -> dict[tuple[int, int], int]:
        """Usable rows of each row group of a manifest; all that the index keeps in memory."""
        usable = {}
        for s, shard in enumerate(manifest.shards):
            for g in range(len(shard.row_groups)):
                counts = count_rows(manifest, s, g)
                usable[s, g] = sum(
                    n for present, n in counts.items() if set(present) & set(self._granularities)
                )
        return usable

    def _unusable(self, manifest: Manifest) -> UserError:
        name = _name(manifest)
        if not len(manifest):
            return UserError(f"manifest {name} is empty", "build it again; see its rejects")
        if self.multi_grained:
            return UserError(
                f"manifest {name} has no regions or objects, so no boxes to learn from",
                "give it to the image-text stream only, and one with boxes here",
            )
        return UserError(
            f"manifest {name} has no captions",
            "give it to the multi-grained stream only, or set data.region_as_caption",
        )


def usable_granularities(config: DataConfig, multi_grained: bool) -> tuple[str, ...]:
    """The granularities of which a row must have one to feed a stream."""
    if multi_grained:
        return REGION, OBJECT
    return (IMAGE, REGION) if config.region_as_caption else (IMAGE,)


def _name(manifest: Manifest) -> str:
    return str(manifest.info.get("name") or manifest.shards[0].url)
