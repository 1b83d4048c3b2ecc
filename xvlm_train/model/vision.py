"""The image encoder: a timm backbone whose output becomes a row-major grid of patches."""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
from timm.layers import build_sincos2d_pos_embed
from torch import Tensor, nn

from xvlm_data.errors import UserError
from xvlm_train.model.compiled import image_features
from xvlm_train.model.config import VisionConfig
from xvlm_train.model.swin import compute_blocks_as


class VisionEncoder(nn.Module):
    """Images [I, 3, R, R] to patches [I, N, C], N = rows x columns of ``grid``, row by row.

    Raises:
        UserError: timm does not know the model, refuses the size or an argument, or its output is
            no square grid of patches.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.name = config.name
        self.image_size = config.image_size
        backbone: Any = _build(config)
        # Some nets keep a norm in their head, which is not used here.
        if isinstance(getattr(backbone, "head", None), nn.Module):
            backbone.head = nn.Identity()
        self.backbone = backbone
        self.prefix_tokens: int = getattr(backbone, "num_prefix_tokens", 0)
        self.width: int = backbone.num_features
        self.layout, self.grid = self._probe()
        self.memory_format = torch.contiguous_format
        self.compiled = self.cuda_graphs = False
        learned = config.position == "learned" or (
            config.position == "auto" and self.layout == "NCHW"
        )
        self.pos_embed: nn.Parameter | None = None
        if learned:
            # Starts as sines and cosines of row and column, so that places differ from the start.
            self.pos_embed = nn.Parameter(
                build_sincos2d_pos_embed(list(self.grid), self.width, interleave_sin_cos=True)
            )
            # Transformers end in a norm of their own; rectified outputs have any scale.
            self.pos_norm = nn.LayerNorm(self.width)

    def compute_as(
        self,
        *,
        channels_last: bool,
        checkpointing: bool = False,
        skip_dropped: bool = False,
        window_kernel: bool = False,
        compiled: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        """How it computes; the results stay what they are.

        Raises:
            UserError: the backbone cannot recompute its activations.
        """
        # Convolutions are faster with channels last, on CPUs by half and more.
        last = channels_last and self.layout == "NCHW"
        wanted = torch.channels_last if last else torch.contiguous_format
        if wanted != self.memory_format:
            self.backbone.to(memory_format=wanted)
            self.memory_format = wanted
        switch = getattr(self.backbone, "set_grad_checkpointing", None)
        if checkpointing and switch is None:
            raise UserError(
                f"{self.name} cannot recompute activations", "set compute.checkpointing to false"
            )
        if switch is not None and (checkpointing or getattr(self, "checkpointing", False)):
            switch(checkpointing)
        self.checkpointing = checkpointing
        self.compiled, self.cuda_graphs = compiled, cuda_graphs
        # A graph has one number of images.
        skip_dropped = skip_dropped and not compiled
        compute_blocks_as(self.backbone, skip_dropped=skip_dropped, window_kernel=window_kernel)

    def forward(self, images: Tensor) -> Tensor:
        """Patches [I, N, C] of images [I, 3, R, R]."""
        # GPUs convolve channels last, and so do images come; the weights they turn themselves.
        wanted = torch.channels_last if images.is_cuda else self.memory_format
        images = images.contiguous(memory_format=wanted)
        # Evaluation has batches of many sizes, each of which would be a graph of its own.
        if self.compiled and torch.is_grad_enabled():
            features = image_features(self.backbone, images, graphs=self.cuda_graphs)
        else:
            features = self.backbone.forward_features(images)
        if self.layout == "NCHW":
            features = features.flatten(2).transpose(1, 2)
        elif self.layout == "NHWC":
            features = features.flatten(1, 2)
        else:
            features = features[:, self.prefix_tokens :]
        return features if self.pos_embed is None else self.pos_norm(features + self.pos_embed)

    @torch.no_grad()
    def _probe(self) -> tuple[str, tuple[int, int]]:
        """Layout and patch grid, seen on one empty image."""
        parameter: Tensor = next(self.backbone.parameters())
        image = parameter.new_zeros(1, 3, self.image_size, self.image_size)
        was_training = self.backbone.training
        try:
            features = self.backbone.eval().forward_features(image)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.name} does not take images of {self.image_size} pixels ({_line(error)})",
                "choose another model.vision.image_size or backbone",
            ) from None
        finally:
            self.backbone.train(was_training)
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise self._no_grid("features that are neither a map nor tokens")
        if features.ndim == 3:
            layout, grid = "tokens", self._token_grid(features.shape[1] - self.prefix_tokens)
        elif self._channels_last(features):
            layout, grid = "NHWC", (features.shape[1], features.shape[2])
        else:
            layout, grid = "NCHW", (features.shape[2], features.shape[3])
        channels = features.shape[1 if layout == "NCHW" else -1]
        if channels != self.width or grid[0] != grid[1] or not grid[0]:
            raise self._no_grid(f"features of shape {list(features.shape[1:])}")
        self._check_stride(grid[0])
        return layout, grid

    def _check_stride(self, side: int) -> None:
        """A padded or cropped grid would not lie over the image as patch masks assume."""
        described: Any = getattr(self.backbone, "feature_info", None)
        stride = self.image_size / side
        if isinstance(described, list) and described:
            stride = described[-1].get("reduction", stride)
        if stride * side != self.image_size or stride != int(stride):
            raise UserError(
                f"{self.name} divides images of {self.image_size} pixels unevenly",
                f"use a multiple of {int(stride)} for image_size",
            )

    def _channels_last(self, features: Tensor) -> bool:
        declared = getattr(self.backbone, "output_fmt", None)
        if declared is not None:
            return str(getattr(declared, "value", declared)) == "NHWC"
        return features.shape[1] != self.width and features.shape[-1] == self.width

    def _token_grid(self, tokens: int) -> tuple[int, int]:
        declared = getattr(getattr(self.backbone, "patch_embed", None), "grid_size", None)
        if declared is not None and math.prod(declared) == tokens:
            return declared[0], declared[1]
        side = math.isqrt(max(tokens, 0))
        if side * side != tokens:
            raise self._no_grid(f"{tokens} tokens")
        return side, side

    def _no_grid(self, seen: str) -> UserError:
        return UserError(
            f"{self.name} gives {seen}, not a square grid of patches",
            "choose a backbone with a patch grid, such as swin_tiny_patch4_window7_224",
        )


def patch_grid(config: VisionConfig) -> tuple[int, int]:
    """Patch rows and columns of a backbone, without its weights."""
    with torch.device("meta"):
        return VisionEncoder(config).grid


def _build(config: VisionConfig) -> nn.Module:
    """The timm model without pooling and classifier, randomly initialised."""
    if not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name.split('_')[0].split('.')[0]}*")[:3]
        raise UserError(
            f"model.vision.name {config.name!r} is no timm model",
            f"for example {', '.join(near)}" if near else "see timm.list_models()",
        )
    # Not every backbone knows every argument, and timm tells by an exception only: convolutional
    # nets take any image size, plain ones have no stochastic depth, a few insist on their pooling
    # (which nothing here uses). Ours may go, the user's may not.
    optional = {
        "img_size": config.image_size,
        "global_pool": "",
        "drop_path_rate": config.drop_path,
    }
    while True:
        arguments: dict[str, Any] = {"num_classes": 0, **optional, **config.kwargs}
        try:
            return timm.create_model(config.name, pretrained=False, **arguments)
        except TypeError as error:
            refused = next((name for name in optional if f"'{name}'" in str(error)), None)
            if refused == "drop_path_rate" and config.drop_path:
                raise UserError(
                    f"{config.name} has no stochastic depth", "set model.vision.drop_path to 0"
                ) from None
            if refused is None:
                raise _refused(config, error) from None
            del optional[refused]
        except (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
            if optional.pop("global_pool", None) is None:
                raise _refused(config, error) from None


def _refused(config: VisionConfig, error: Exception) -> UserError:
    return UserError(
        f"timm cannot build {config.name} ({_line(error)})",
        "correct model.vision.kwargs and image_size",
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
