"""Settings of the two training streams; plain data, so that a config loads without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xvlm_data.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """What becomes of a manifest row before the model sees it.

    Defaults are the paper's 4M run (spec: Inputs), except the two named defects of the released
    code: ``flip_guard`` and ``distinct_texts`` are on. With both off the input is the original's.
    """

    #: Side of the square the model sees, pixels.
    image_size: int = 224
    #: Longest text in tokens, [CLS] included.
    max_tokens: int = 40
    #: Words kept of a text before it is cut into tokens.
    max_words: int = 40
    #: Share of the tokens ([CLS] counted) to predict, and the most of them.
    mask_prob: float = 0.25
    max_masks: int = 8

    #: Image-text pairs a process takes in a step.
    batch_size: int = 128
    #: Images of a multi-grained batch of one process, and the most texts they give together.
    max_images: int = 48
    max_texts: int = 128
    #: Most concepts of one image; the caption, where there is one, is one of them.
    max_concepts: int = 5

    #: Chance of a horizontal flip.
    flip: float = 0.5
    #: Never flip when a text of the image says left or right (the original does).
    flip_guard: bool = True
    #: Smallest share of an image's area a random crop keeps (image-text stream).
    min_crop_scale: float = 0.2
    #: Share of multi-grained images that are cropped around a concept, as the original does with
    #: all of them; the rest are shown whole, as they are in evaluation.
    concept_crop: float = 1.0
    #: RandAugment: operations an image (0 turns it off), their strength out of 10, and the chance
    #: that a drawn operation is carried out (the released code uses one half).
    randaugment_n: int = 2
    randaugment_m: int = 7
    randaugment_prob: float = 0.5
    #: Carry the operations out on the device that trains, batch by batch, not in the loader.
    augment_on_device: bool = False
    #: How pixels are made. fast: JPEG decoded at a fraction of its size where the crop is large
    #: enough, resized in SIMD. exact: decoded whole and resized by Pillow, as the original does.
    pixels: Literal["fast", "exact"] = "fast"

    #: One concept a text in an image: two equal texts would be false negatives of each other.
    distinct_texts: bool = True
    #: Region texts stand in as captions of images that have none (the paper's use of VG).
    region_as_caption: bool = False

    #: Row groups that are shuffled together, and lanes of a stream that steps read in turn. All
    #: workers together hold pool_groups x lanes row groups (32 MB each where images are embedded)
    #: for each 128 images of the global batch, and one pool more a lane for a moment; best with a
    #: number of workers that divides lanes, or a multiple of it.
    pool_groups: int = 4
    lanes: int = 4
    #: Seed of the order of rows, of crops, masks and augmentation.
    seed: int = 0
    #: Loader processes; 0 loads in the training process. The batches are the same for any number.
    workers: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting."""
        at_least = {
            "image_size": 1,
            "max_tokens": 2,
            "max_words": 1,
            "max_masks": 1,
            "batch_size": 1,
            "max_images": 1,
            "max_texts": 1,
            "max_concepts": 1,
            "randaugment_n": 0,
            "randaugment_m": 0,
            "pool_groups": 1,
            "lanes": 1,
            "seed": 0,
            "workers": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UserError(f"data.{name} is {getattr(self, name)}", f"at least {least}")
        for name in ("mask_prob", "flip", "concept_crop", "randaugment_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.{name} is {getattr(self, name)}", "give 0 to 1")
        if not 0 < self.min_crop_scale <= 1:
            raise UserError(f"data.min_crop_scale is {self.min_crop_scale}", "give 0 to 1, not 0")
        if self.randaugment_m > 10:
            raise UserError(f"data.randaugment_m is {self.randaugment_m}", "at most 10")
        if self.seed >= 2**63:
            raise UserError(f"data.seed is {self.seed}", "below 2**63")
        if self.max_texts < self.max_images:
            raise UserError(
                f"data.max_texts ({self.max_texts}) is below data.max_images ({self.max_images})",
                "each image needs room for one text",
            )
