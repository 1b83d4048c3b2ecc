"""What the model is made of, and where the losses follow the original. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

from xvlm_data.errors import UserError

SameText = Literal["keep", "ignore", "positive"]
#: Arguments of timm that are about files and ways to run, beside those that begin ``pretrained``.
_LOADING = frozenset(
    ["checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only"]
)


@dataclass
class VisionConfig:
    """An image encoder: any timm backbone whose output is a square grid of patches."""

    name: str = "swin_base_patch4_window7_224"
    """timm model name, with or without a weight tag."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the timm model (``embed_dim``, ``depths``, …)."""
    image_size: int = 224
    """Side of the square input in pixels."""
    pretrained: bool | str = False
    """Initial weights: true = those of ``name``; or a hub name, a folder, a .safetensors file."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; 0 for backbones that have none."""
    position: Literal["auto", "none", "learned"] = "auto"
    """Position embedding and LayerNorm after the backbone; auto = for convolutional nets only."""

    def __post_init__(self) -> None:
        # timm would load weights in its own way, a pickle among them; and configurations come with
        # models from elsewhere.
        for name in self.kwargs:
            if name.startswith("pretrained") or name in _LOADING:
                raise UserError(
                    f"model.vision.kwargs.{name} is no argument of a net",
                    "weights to start from are named by model.vision.pretrained",
                )


@dataclass
class TextConfig:
    """BERT, cut in two: ``fusion_layer`` text layers, then cross-modal layers."""

    hidden: int = 768
    """Width of the layers; a multiple of `heads`."""
    layers: int = 12
    """Layers in all, text and cross-modal."""
    fusion_layer: int = 6
    """Index of the first layer with cross-attention."""
    heads: int = 12
    """Attention heads of a layer."""
    intermediate: int = 3072
    """Width of the feed-forward parts."""
    vocab: int = 30522
    """Rows of the word embedding; a run sets it to its tokenizer's size."""
    max_positions: int = 512
    """Rows of the position table, so the longest text in tokens."""
    token_types: int = 2
    """Rows of the token-type table, of which the first is used."""
    pad_id: int = 0
    """Id of the padding token."""
    dropout: float = 0.1
    """Dropout of embeddings and of the layers' outputs."""
    attention_dropout: float = 0.1
    """Dropout of attention weights."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every LayerNorm."""
    initializer_range: float = 0.02
    """Standard deviation of new matrices; narrow models learn faster with about 1/√hidden."""
    pretrained: str | None = None
    """Initial weights: a Hugging Face name, a local folder, a .safetensors file; none = random."""

    def __post_init__(self) -> None:
        sizes = ("hidden", "layers", "heads", "intermediate", "vocab", "max_positions")
        for name in (*sizes, "token_types"):
            if getattr(self, name) < 1:
                raise UserError(f"model.text.{name} is {getattr(self, name)}", "at least 1")
        if self.hidden % self.heads:
            raise UserError(
                f"text.hidden {self.hidden} is not a multiple of text.heads {self.heads}",
                "choose a width that the heads divide",
            )
        if not 0 <= self.fusion_layer < self.layers:
            raise UserError(
                f"text.fusion_layer {self.fusion_layer} is not one of {self.layers} layers",
                "at least one layer must be cross-modal",
            )


@dataclass
class ModelConfig:
    """The whole model; the defaults are the paper's base model (215,637,241 parameters)."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embed_dim: int = 256
    """Width E of the contrastive space."""
    temperature: float = 0.07
    """Initial contrastive temperature."""

    def __post_init__(self) -> None:
        if not 0.001 <= self.temperature <= 0.5:
            raise UserError(f"model.temperature is {self.temperature}", "give 0.001 to 0.5")
        if self.embed_dim < 1:
            raise UserError(f"model.embed_dim is {self.embed_dim}", "at least 1")


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a step is computed; none of it changes a loss or a gradient beyond rounding.

    The defaults save all that can be saved; :meth:`naive` is the same model with none of it.
    """

    packed: bool | Literal["auto"] = "auto"
    """Texts lie one after the other without padding, and attention is a kernel for any lengths;
    auto: on NVIDIA's GPUs from Ampere on, with Triton. The next three settings are of texts that
    do not."""
    length_groups: int = 8
    """Texts of similar length are computed together, in at most this many groups; 0: one group."""
    length_multiple: int = 0
    """Lengths are rounded up to this; 0: 8 on GPUs, whose kernels want it, 1 on CPUs."""
    pad_to: int = 0
    """Least length of the one group where there are no more (the original: ``max_tokens``)."""
    share_images: bool = True
    """Cross-modal keys and values are projected once an image, not once a text and pass."""
    joint_passes: bool = True
    """Clean and masked texts in one call, all cross-modal passes in one call."""
    pruned_queries: bool = True
    """In the last layer only places that a head reads are queries."""
    masked_only: bool = True
    """The vocabulary projection leaves out mask slots that are not in use."""
    read_negatives: bool | Literal["auto"] = "auto"
    """Read from the device how long the drawn negative texts are, which a GPU waits for, or give
    each the room of the longest text; auto: read on CPUs."""
    channels_last: bool = True
    """Convolutional image encoders compute with channels last."""
    skip_dropped: bool = True
    """Swin's blocks leave out images whose branch stochastic depth drops, instead of multiplying
    the branch by zero."""
    window_kernel: bool = True
    """Swin's window attention in one kernel, where ``packed`` would be automatic."""
    compile: bool = False
    """torch.compile of the image encoder and of the feed-forward parts (:mod:`.compiled`); the
    first steps of a run take minutes, and on a CPU it needs a C++ compiler and gains little."""
    cuda_graphs: bool = False
    """With ``compile`` on a GPU, the image encoder's kernels are launched by one call each way;
    not tried on a GPU yet."""
    checkpointing: bool = False
    """Keep only layer inputs for the backward pass, and compute the rest again: less memory."""

    def __post_init__(self) -> None:
        for name in ("length_groups", "length_multiple", "pad_to"):
            if getattr(self, name) < 0:
                raise UserError(f"compute.{name} is {getattr(self, name)}", "at least 0")

    def packs(self, device: str) -> bool:
        """Whether texts are packed on a device of this type."""
        if not (self.joint_passes and self.share_images and self.pruned_queries):
            return False
        if self.packed == "auto":
            return device == "cuda" and find_spec("triton") is not None
        return self.packed

    def multiple(self, device: str) -> int:
        """What lengths are rounded up to on a device of this type."""
        return self.length_multiple or (8 if device == "cuda" else 1)

    def reads_negatives(self, device: str) -> bool:
        """Whether lengths of negative texts are read on a device of this type."""
        if self.read_negatives == "auto":
            return device in ("cpu", "meta")
        return self.read_negatives

    @classmethod
    def naive(cls, pad_to: int) -> ComputeConfig:
        """No saving at all: what the original does, with all texts padded to ``pad_to`` tokens."""
        return cls(
            packed=False,
            length_groups=0,
            pad_to=pad_to,
            share_images=False,
            joint_passes=False,
            pruned_queries=False,
            masked_only=False,
            channels_last=False,
            skip_dropped=False,
            window_kernel=False,
        )


@dataclass(frozen=True)
class Parity:
    """Where the losses may follow the original's defects; the defaults follow none of them."""

    contrastive_gradient: str = "exact"
    """``exact``, or ``official:<W>``: encoders get 1/W of the contrastive gradient, τ all of it."""
    degenerate_giou: Literal["row", "batch"] = "row"
    """A box of negative width or height zeroes the GIoU loss of its row, or of the rank's batch."""
    no_region_rows: Literal["zero", "nan"] = "zero"
    """The box losses of a batch without region rows."""
    same_text_negatives: SameText = "keep"
    """Other concepts of a batch with the same text, or with the same patches of the same image:
    negatives (``keep``), left out of contrastive and matching loss (``ignore``), or positives of
    the contrastive loss and left out of the matching loss (``positive``). Equal texts have equal
    features, so to the contrastive loss ``positive`` and ``keep`` differ by dropout only."""
    whole_image_boxes: bool = False
    """Whether whole-image rows count in the box losses (in the original: not in pre-training)."""

    def __post_init__(self) -> None:
        kind, _, world = self.contrastive_gradient.partition(":")
        if self.contrastive_gradient != "exact" and not (
            kind == "official" and world.isdecimal() and int(world) > 0
        ):
            raise UserError(
                f"contrastive_gradient {self.contrastive_gradient!r} is not known",
                "use exact, or official:<W> such as official:8",
            )

    @property
    def encoder_gradient_scale(self) -> float:
        """Factor on the contrastive gradient that reaches the encoders: 1 or 1/W."""
        _, _, world = self.contrastive_gradient.partition(":")
        return 1 / int(world) if world else 1.0

    @classmethod
    def clean(cls) -> Parity:
        """The default: no defect of the original."""
        return cls()

    @classmethod
    def official(cls, world: int = 8) -> Parity:
        """The original's behaviour on ``world`` GPUs (8 in the paper's 4M run, 24 in 16M)."""
        return cls(f"official:{world}", degenerate_giou="batch", no_region_rows="nan")
