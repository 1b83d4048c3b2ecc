"""X-VLM: images are encoded once, concepts are masked views of them (paper, section 3)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_train.data.batch import Batch
from xvlm_train.model import kernels
from xvlm_train.model.config import ComputeConfig, ModelConfig
from xvlm_train.model.packing import PackedTexts
from xvlm_train.model.passes import GroupedTexts
from xvlm_train.model.segments import Segment, VisionTokens
from xvlm_train.model.text import TextEncoder
from xvlm_train.model.vision import VisionEncoder

#: Range of the contrastive temperature.
TEMPERATURE_RANGE = (0.001, 0.5)

Negatives = Literal["sample", "argmax"]
DEFAULT = ComputeConfig()


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of B concepts after both encoders."""

    vision: VisionTokens
    """B views."""
    texts: PackedTexts | GroupedTexts
    image_features: Tensor
    """[B, E], L2-normalised."""
    text_features: Tensor
    """[B, E], L2-normalised."""
    temperature: Tensor
    """Scalar, clamped, with gradient."""


@dataclass(slots=True)
class Outputs:
    """What the objectives need of a batch of B concepts, and how its negatives were chosen.

    Features, boxes and head logits are float32, whatever the precision of the encoders.
    """

    image_features: Tensor
    """[B, E], L2-normalised."""
    text_features: Tensor
    """[B, E], L2-normalised."""
    temperature: Tensor
    """Scalar, clamped, with gradient."""
    matching_logits: Tensor
    """[3B, 2]: pairs, (negative image, text), (image, negative text), B each; column 1 = match."""
    matching_labels: Tensor
    """[3B] int64: 1, 0, or -100 where the batch holds no negative for the concept."""
    mlm_logits: Tensor
    """[K, vocabulary] at the K masked positions of all texts."""
    mlm_labels: Tensor
    """[K] int64: the tokens that stood there; -100 where a slot is not in use."""
    mlm_rows: Tensor
    """[K] int64: the concept whose text each is of."""
    predicted_boxes: Tensor | None
    """[B, 4] (cx, cy, w, h) in [0, 1]; none for the image-text stream."""
    matching_states: Tensor
    """[3B, D]: input of the matching head."""
    image_weights: Tensor
    """[B, B]: row = text, column = image: unnormalised chance of each negative image."""
    text_weights: Tensor
    """[B, B]: row = image, column = text: unnormalised chance of each negative text."""
    negative_images: Tensor
    """[B] int64: the concept drawn as negative image of each text."""
    negative_texts: Tensor
    """[B] int64: the concept drawn as negative text of each image."""


class XVLM(nn.Module):
    """The full model, randomly initialised; :func:`pretrained.initialise` loads published weights.

    Raises:
        UserError: the backbone cannot be built or gives no square patch grid.
    """

    def __init__(self, config: ModelConfig, compute: ComputeConfig = DEFAULT) -> None:
        super().__init__()
        self.config = config
        hidden = config.text.hidden
        self.vision_encoder = VisionEncoder(config.vision)
        self.text_encoder = TextEncoder(config.text, self.vision_encoder.width)
        self.vision_proj = nn.Linear(self.vision_encoder.width, config.embed_dim)
        self.text_proj = nn.Linear(hidden, config.embed_dim)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        self.itm_head = _head(hidden, 2)
        self.bbox_head = _head(hidden, 4)
        self.compute_as(compute)

    def compute_as(self, compute: ComputeConfig) -> None:
        """Compute all that follows in this way; weights and results stay what they are."""
        self.compute = compute
        self.text_encoder.compute_as(checkpointing=compute.checkpointing, compiled=compute.compile)
        self.vision_encoder.compute_as(
            channels_last=compute.channels_last,
            checkpointing=compute.checkpointing,
            skip_dropped=compute.skip_dropped,
            window_kernel=compute.window_kernel,
            compiled=compute.compile,
            cuda_graphs=compute.cuda_graphs,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.vision_encoder.grid

    def encode_image(self, images: Tensor) -> Tensor:
        """Patches [I, N, C] of images [I, 3, R, R], row by row from the top left."""
        return self.vision_encoder(images)

    def concept_tokens(
        self, patches: Tensor, image_index: Tensor, patch_mask: Tensor | None
    ) -> VisionTokens:
        """Vision tokens of B concepts: the mean of the masked patches, and the image's patches.

        Args:
            patches: [I, N, C].
            image_index: [B] the image of each concept.
            patch_mask: [B, 1+N], place 0 (v_cls) is always visible; none: all are.
        """
        if patch_mask is None:
            mean = patches.mean(1).index_select(0, image_index)
            return VisionTokens(patches, image_index, mean, None)
        mask = patch_mask[:, 1:].to(patches.dtype)
        total = torch.bmm(mask.unsqueeze(1), patches.index_select(0, image_index)).squeeze(1)
        mean = total / mask.sum(1, keepdim=True).clamp(min=1)
        return VisionTokens(patches, image_index, mean.to(patches.dtype), patch_mask)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text states [B, L, D]; mask [B, L] is 1 on tokens."""
        return self.text_encoder.encode([Segment(ids, mask)])[0]

    def fuse(self, states: Tensor, mask: Tensor, vision: VisionTokens) -> Tensor:
        """Cross-modal states [B, L, D] of text states [B, L, D] and B rows of vision tokens."""
        return self.text_encoder.fuse([Segment(states, mask)], vision)[0]

    def image_features(self, cls: Tensor) -> Tensor:
        """Contrastive features [B, E] of v_cls [B, C]."""
        return F.normalize(self.vision_proj(cls).float(), dim=-1)

    def text_features(self, cls: Tensor) -> Tensor:
        """Contrastive features [B, E] of the text encoder's [CLS] [B, D]."""
        return F.normalize(self.text_proj(cls).float(), dim=-1)

    def match_logits(self, cls: Tensor) -> Tensor:
        """Logits [B, 2] of the cross-modal [CLS] [B, D]; column 1 = the pair matches."""
        return self.itm_head(cls).float()

    def predict_boxes(self, cls: Tensor) -> Tensor:
        """Boxes [B, 4] (cx, cy, w, h) in [0, 1] of the cross-modal [CLS] [B, D]."""
        return self.bbox_head(cls).float().sigmoid()

    def clamped_temperature(self) -> Tensor:
        """τ, after clamping the parameter itself to [0.001, 0.5] as the original does."""
        with torch.no_grad():
            self.temp.clamp_(*TEMPERATURE_RANGE)
        # A copy, because the next forward pass clamps in place what backward still needs.
        return self.temp.clone()

    def encode(self, batch: Batch) -> Encoded:
        """Both encoders: what the contrastive loss and the cross-modal passes start from."""
        patches = self.encode_image(batch.images)
        # Of the image-text stream every view is a whole image, so that nothing is hidden.
        mask = batch.patch_mask if batch.multi_grained else None
        vision = self.concept_tokens(patches, batch.image_index, mask)
        packed = self.compute.packs(batch.images.device.type)
        if self.compute.packed == "auto":  # without kernels it would be padding all the same
            packed = packed and kernels.run_on(batch.images)
        kind: type[PackedTexts] | type[GroupedTexts] = PackedTexts if packed else GroupedTexts
        texts = kind.encode(self.text_encoder, batch, self.compute)
        return Encoded(
            vision=vision,
            texts=texts,
            image_features=self.image_features(vision.cls),
            text_features=self.text_features(texts.cls_states),
            temperature=self.clamped_temperature(),
        )

    def forward(
        self,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        negatives: Negatives = "sample",
        same: Tensor | None = None,
    ) -> Outputs:
        """All passes of a batch; no host synchronisation.

        Args:
            batch: either stream's.
            generator: for the draw of the negatives; on the batch's device.
            negatives: draw them, or take the likeliest (reproducible; for verification).
            same: [B, B] boolean; concepts that are never each other's negatives. The diagonal is
                always among them.
        """
        encoded = self.encode(batch)
        image_features, text_features = encoded.image_features, encoded.text_features
        image_weights = negative_weights(text_features, image_features, encoded.temperature, same)
        text_weights = negative_weights(image_features, text_features, encoded.temperature, same)
        images, has_image = choose_negatives(image_weights, negatives, generator)
        texts, has_text = choose_negatives(text_weights, negatives, generator)
        if batch.multi_grained:
            everywhere = torch.ones_like(batch.patch_mask[:1]).expand(len(batch.images), -1)
            every_image = torch.arange(len(batch.images), device=images.device)
            whole = self.concept_tokens(encoded.vision.patches, every_image, everywhere)
        else:
            whole = None
        fused = encoded.texts.cross_modal(
            self.text_encoder, batch, encoded.vision, whole, images, texts, self.compute
        )
        return Outputs(
            image_features=image_features,
            text_features=text_features,
            temperature=encoded.temperature,
            matching_logits=self.match_logits(fused.pairs),
            matching_labels=torch.cat(
                [
                    torch.ones_like(images),
                    torch.where(has_image, 0, -100),
                    torch.where(has_text, 0, -100),
                ]
            ),
            mlm_logits=self.text_encoder.token_logits(fused.masked),
            mlm_labels=fused.labels,
            mlm_rows=fused.rows,
            predicted_boxes=None if fused.boxes is None else self.predict_boxes(fused.boxes),
            matching_states=fused.pairs,
            image_weights=image_weights,
            text_weights=text_weights,
            negative_images=images,
            negative_texts=texts,
        )


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """No autocast on the tensor's device; tensors without data know of none anyway."""
    if like.is_meta:
        return nullcontext()
    return torch.autocast(like.device.type, enabled=False)


@torch.no_grad()
def negative_weights(
    queries: Tensor, keys: Tensor, temperature: Tensor, same: Tensor | None = None
) -> Tensor:
    """Weights [B, B] of each key as hard negative of each query (paper, section 3.2).

    softmax(similarity / τ) over the rank's own batch + 1e-5; zero on the diagonal, and on every
    pair that ``same`` [B, B] marks.
    """
    with full_precision(queries):
        weights = (queries @ keys.T / temperature).softmax(1) + 1e-5
    if same is not None:
        weights = weights.masked_fill(same, 0)
    return weights.fill_diagonal_(0)


def choose_negatives(
    weights: Tensor, how: Negatives, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """One column for each row of weights [B, B], and whether the row has any to choose.

    Drawn by an exponential race, argmax of weight / Exp(1), which is how ``torch.multinomial``
    draws, without its check of the weights on the host. A row without candidates (a batch of one
    concept) gets column 0 and false.
    """
    race = weights
    if how == "sample":
        race = weights / torch.empty_like(weights).exponential_(generator=generator)
        race = race.masked_fill(weights == 0, -1)
    return race.argmax(1), weights.amax(1) > 0


def _head(hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(hidden, 2 * hidden),
        nn.LayerNorm(2 * hidden),
        nn.GELU(),
        nn.Linear(2 * hidden, outputs),
    )
