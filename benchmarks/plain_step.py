"""Whether `xvlm-train bench --naive` is a fair opponent: beside a plain eager implementation.

    python benchmarks/plain_step.py --preset base --batch 8 --rounds 4

The plain one is written as the paper's code is organised, of published parts: timm's Swin, the
layers of transformers' BERT with its eager attention, texts padded to ``data.max_tokens``, image
features repeated for each text, one negative after the other. Both take the same weights and have
to give the same losses before anything is timed. Times are of forward and backward pass.
"""

from __future__ import annotations

import json
import time
from statistics import median
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from xvlm_train.bench.command import STREAMS, make_model, synthetic
from xvlm_train.config import PRESETS, load_config
from xvlm_train.data.batch import Batch
from xvlm_train.model.config import ComputeConfig
from xvlm_train.model.xvlm import XVLM, Outputs, negative_weights
from xvlm_train.objectives import compute_losses


class Plain(nn.Module):
    """The same model of other parts; heads, embeddings and the image encoder are ``model``'s."""

    def __init__(self, model: XVLM, length: int) -> None:
        super().__init__()
        text = model.config.text
        self.model, self.length, self.fusion_layer = model, length, text.fusion_layer
        layers = []
        for index, ours in enumerate(model.text_encoder.bert.encoder.layer):
            crossing = index >= text.fusion_layer
            config = BertConfig(
                hidden_size=text.hidden,
                num_attention_heads=text.heads,
                intermediate_size=text.intermediate,
                hidden_dropout_prob=text.dropout,
                attention_probs_dropout_prob=text.attention_dropout,
                layer_norm_eps=text.layer_norm_eps,
                is_decoder=crossing,
                add_cross_attention=crossing,
                attn_implementation="eager",
            )
            layer = BertLayer(config)
            if crossing:
                for name in ("key", "value"):
                    wide = nn.Linear(model.vision_encoder.width, text.hidden)
                    setattr(layer.crossattention.self, name, wide)
            layer.load_state_dict(ours.state_dict())
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def forward(self, batch: Batch, negatives: str = "sample") -> Outputs:
        """As :meth:`XVLM.forward`, pass after pass."""
        model, rows = self.model, len(batch.text_ids)
        mask = F.pad(batch.text_mask, (0, self.length - batch.text_mask.shape[1]))
        patches = model.encode_image(batch.images)
        inside = batch.patch_mask
        seen = patches[batch.image_index]
        weight = inside[:, 1:, None].to(seen.dtype)
        cls = (seen * weight).sum(1) / weight.sum(1)
        vision = torch.cat([cls[:, None], seen], dim=1)
        states = self.encode(batch.text_ids, mask)
        temperature = model.clamped_temperature()
        image_features, text_features = model.image_features(cls), model.text_features(states[:, 0])
        image_weights = negative_weights(text_features, image_features, temperature)
        text_weights = negative_weights(image_features, text_features, temperature)

        def draw(weights: Tensor) -> list[int]:
            if negatives == "argmax":
                return [int(row.argmax().item()) for row in weights]
            return [int(torch.multinomial(row, 1).item()) for row in weights]

        images, texts = draw(image_weights), draw(text_weights)
        positive = self.fuse(states, mask, vision, inside)[:, 0]
        negative = self.fuse(
            torch.cat([states, torch.stack([states[t] for t in texts])]),
            torch.cat([mask, torch.stack([mask[t] for t in texts])]),
            torch.cat([torch.stack([vision[i] for i in images]), vision]),
            torch.cat([torch.stack([inside[i] for i in images]), inside]),
        )[:, 0]
        pairs = torch.cat([positive, negative])
        hidden = self.fuse(self.encode(batch.masked_ids, mask), mask, vision, inside)
        places = batch.masked_positions[..., None].expand(-1, -1, hidden.shape[-1])
        boxes = None
        if batch.multi_grained:
            whole = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)[batch.image_index]
            boxes = self.fuse(states, mask, whole, torch.ones_like(inside))[:, 0]
        return Outputs(
            image_features=image_features,
            text_features=text_features,
            temperature=temperature,
            matching_logits=model.match_logits(pairs),
            matching_labels=torch.tensor([1] * rows + [0] * 2 * rows),
            mlm_logits=model.text_encoder.token_logits(hidden.gather(1, places)).flatten(0, 1),
            mlm_labels=batch.masked_labels.flatten(),
            mlm_rows=torch.arange(rows).repeat_interleave(batch.masked_labels.shape[1]),
            predicted_boxes=None if boxes is None else model.predict_boxes(boxes),
            matching_states=pairs,
            image_weights=image_weights,
            text_weights=text_weights,
            negative_images=torch.tensor(images),
            negative_texts=torch.tensor(texts),
        )

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Text states [B, L, D]."""
        padded = F.pad(ids, (0, self.length - ids.shape[1]))
        states = self.model.text_encoder.bert.embeddings([padded]).unflatten(0, padded.shape)
        for layer in self.layers[: self.fusion_layer]:
            states = _states(layer(states, _additive(mask)))
        return states

    def fuse(self, states: Tensor, mask: Tensor, vision: Tensor, inside: Tensor) -> Tensor:
        """Cross-modal states [B, L, D]."""
        for layer in self.layers[self.fusion_layer :]:
            new = layer(
                states,
                _additive(mask),
                encoder_hidden_states=vision,
                encoder_attention_mask=_additive(inside),
            )
            states = _states(new)
        return states


def _states(output: Any) -> Tensor:
    """Layers of some versions of transformers return a tuple."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _additive(mask: Tensor) -> Tensor:
    return (1 - mask[:, None, None, :].float()) * -10000.0


@click.command()
@click.option("--preset", type=click.Choice(PRESETS), default="tiny", show_default=True)
@click.option("--batch", type=click.IntRange(2), default=8, show_default=True)
@click.option("--images", type=click.IntRange(1), help="Of the multi-grained batch. [3/8 of it]")
@click.option("--stream", "streams", type=click.Choice(STREAMS), multiple=True)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    preset: str,
    batch: int,
    images: int | None,
    streams: tuple[str, ...],
    rounds: int,
    as_json: bool,
) -> None:
    """Time naive and plain in turn, on the CPU in float32."""
    settings = [f"data.batch_size={batch}", f"data.max_texts={batch}"]
    settings.append(f"data.max_images={images or max(1, batch * 3 // 8)}")
    config = load_config(preset, [], settings)
    model = make_model(config, torch.device("cpu"))
    model.compute_as(ComputeConfig.naive(config.data.max_tokens))
    plain = Plain(model, config.data.max_tokens)
    report: dict[str, Any] = {"preset": preset, "threads": torch.get_num_threads()}
    for stream in streams or STREAMS:
        batches = synthetic(config, stream, model)
        difference = _difference(model, plain, next(batches))
        if difference > 1e-4:
            raise click.ClickException(f"{stream}: losses differ by {difference:.1e}")
        times: dict[str, list[float]] = {"naive": [], "plain": []}
        for number in range(rounds + 1):
            one = next(batches)
            for name, what in (("naive", model), ("plain", plain)):
                seconds = _seconds(what, one)
                if number:  # the first is for warming up
                    times[name].append(seconds)
        ratios = [a / b for a, b in zip(times["naive"], times["plain"], strict=True)]
        report[stream] = {**times, "loss_difference": difference, "ratios": ratios}
        if not as_json:
            click.echo(
                f"{preset} {stream}: naive {median(times['naive']):.3g} s, plain"
                f" {median(times['plain']):.3g} s, naive / plain {median(ratios):.2f}"
                f" [{min(ratios):.2f}–{max(ratios):.2f}], losses differ by {difference:.0e}"
            )
    if as_json:
        click.echo(json.dumps(report))


@torch.no_grad()
def _difference(model: XVLM, plain: Plain, batch: Batch) -> float:
    """Largest difference of a loss, relative to it; no dropout, the likeliest negatives."""
    plain.eval()
    ours = compute_losses(model(batch, negatives="argmax"), batch)
    theirs = compute_losses(plain(batch, negatives="argmax"), batch)
    plain.train()
    return max(
        abs(ours[name].item() - loss.item()) / abs(loss.item()) for name, loss in theirs.items()
    )


def _seconds(model: nn.Module, batch: Batch) -> float:
    start = time.perf_counter()
    compute_losses(model(batch), batch)["total"].backward()
    seconds = time.perf_counter() - start
    for parameter in model.parameters():
        parameter.grad = None
    return seconds


if __name__ == "__main__":
    main()
