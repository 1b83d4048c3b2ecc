"""X-VLM: images are encoded once, concepts are masked views of them (paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ModelConfig
from xvlm_train.model.text import TextEncoder, VisionTokens
from xvlm_train.model.vision import VisionEncoder

#: Range of the contrastive temperature.
TEMPERATURE_RANGE = (0.001, 0.5)

Negatives = Literal["sample", "argmax"]


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
    """[B, M, vocabulary] at the masked positions."""
    mlm_labels: Tensor
    """[B, M] int64, -100 in unused slots."""
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

    def __init__(self, config: ModelConfig) -> None:
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

    @property
    def grid(self) -> tuple[int, int]:
        """Patch rows and columns."""
        return self.vision_encoder.grid

    def encode_image(self, images: Tensor) -> Tensor:
        """Patches [I, N, C] of images [I, 3, R, R], row by row from the top left."""
        return self.vision_encoder(images)

    def concept_tokens(
        self, patches: Tensor, image_index: Tensor, patch_mask: Tensor
    ) -> VisionTokens:
        """Vision tokens of B concepts: the mean of the masked patches, and the image's patches.

        Args:
            patches: [I, N, C].
            image_index: [B] the image of each concept.
            patch_mask: [B, 1+N], place 0 (v_cls) is always visible.
        """
        mask = patch_mask[:, 1:].to(patches.dtype)
        total = torch.bmm(mask.unsqueeze(1), patches.index_select(0, image_index)).squeeze(1)
        mean = total / mask.sum(1, keepdim=True).clamp(min=1)
        return VisionTokens(patches, image_index, mean.to(patches.dtype), patch_mask)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text states [B, L, D]; mask [B, L] is 1 on tokens."""
        return self.text_encoder.encode(ids, mask)

    def fuse(self, states: Tensor, mask: Tensor, vision: VisionTokens) -> Tensor:
        """Cross-modal states [B, L, D] of text states [B, L, D] and B rows of vision tokens."""
        return self.text_encoder.fuse(states, mask, vision)

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

    def forward(
        self,
        batch: Batch,
        *,
        generator: torch.Generator | None = None,
        negatives: Negatives = "sample",
        groups: Tensor | None = None,
    ) -> Outputs:
        """All passes of a batch; no host synchronisation.

        Args:
            batch: either stream's.
            generator: for the draw of the negatives; on the batch's device.
            negatives: draw them, or take the likeliest (reproducible; for verification).
            groups: [B] labels; concepts with equal labels are never each other's negatives.
        """
        rows = len(batch.text_ids)
        patches = self.encode_image(batch.images)
        vision = self.concept_tokens(patches, batch.image_index, batch.patch_mask)
        states, masked_states = self.encode_text(
            torch.cat([batch.text_ids, batch.masked_ids]), batch.text_mask.repeat(2, 1)
        ).split(rows)

        temperature = self.clamped_temperature()
        image_features = self.image_features(vision.cls)
        text_features = self.text_features(states[:, 0])
        image_weights = negative_weights(text_features, image_features, temperature, groups)
        text_weights = negative_weights(image_features, text_features, temperature, groups)
        images, has_image = choose_negatives(image_weights, negatives, generator)
        texts, has_text = choose_negatives(text_weights, negatives, generator)

        # One cross-modal pass: pairs, (negative image, text), (image, negative text), masked text,
        # and in the multi-grained stream the text with the whole image, for the box.
        passes = [
            (states, batch.text_mask, vision),
            (states, batch.text_mask, vision[images]),
            (states[texts], batch.text_mask[texts], vision),
            (masked_states, batch.text_mask, vision),
        ]
        if batch.multi_grained:
            everywhere = torch.ones_like(batch.patch_mask)
            whole = self.concept_tokens(patches, batch.image_index, everywhere)
            passes.append((states, batch.text_mask, whole))
        text, text_mask, tokens = zip(*passes, strict=True)
        fused = self.fuse(torch.cat(text), torch.cat(text_mask), VisionTokens.cat(tokens)).split(
            rows
        )

        pairs = torch.cat([part[:, 0] for part in fused[:3]])
        places = batch.masked_positions.unsqueeze(-1).expand(-1, -1, pairs.shape[-1])
        return Outputs(
            image_features=image_features,
            text_features=text_features,
            temperature=temperature,
            matching_logits=self.match_logits(pairs),
            matching_labels=torch.cat(
                [
                    torch.ones_like(images),
                    torch.where(has_image, 0, -100),
                    torch.where(has_text, 0, -100),
                ]
            ),
            mlm_logits=self.text_encoder.token_logits(fused[3].gather(1, places)),
            mlm_labels=batch.masked_labels,
            predicted_boxes=self.predict_boxes(fused[4][:, 0]) if batch.multi_grained else None,
            matching_states=pairs,
            image_weights=image_weights,
            text_weights=text_weights,
            negative_images=images,
            negative_texts=texts,
        )


@torch.no_grad()
def negative_weights(
    queries: Tensor, keys: Tensor, temperature: Tensor, groups: Tensor | None = None
) -> Tensor:
    """Weights [B, B] of each key as hard negative of each query (paper, section 3.2).

    softmax(similarity / τ) over the rank's own batch + 1e-5; zero on the diagonal, or on every pair
    of equal ``groups``.
    """
    with torch.autocast(queries.device.type, enabled=False):
        weights = (queries @ keys.T / temperature).softmax(1) + 1e-5
    if groups is None:
        return weights.fill_diagonal_(0)
    return weights.masked_fill(groups[:, None] == groups[None, :], 0)


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
