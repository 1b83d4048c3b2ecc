"""A trained model from a run's folder: configuration, tokenizer, weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from xvlm_train.config import PretrainConfig, load_config
from xvlm_train.data.tokenizer import Tokenizer
from xvlm_train.engine import checkpoint
from xvlm_train.engine.weights import load_model
from xvlm_train.model.xvlm import XVLM

CONFIG_FILE, TOKENIZER_FOLDER = "config.yaml", "tokenizer"


@dataclass
class Saved:
    """What a checkpoint holds for use."""

    path: Path
    step: int
    config: PretrainConfig
    tokenizer: Tokenizer
    model: XVLM


def load_saved(path: Path, device: torch.device) -> Saved:
    """Load a checkpoint, or the latest of a run's folder, in evaluation mode.

    Raises:
        UserError: nothing there, or something in it is missing or damaged.
    """
    found = checkpoint.find(path, unused=(checkpoint.OPTIMIZER,))
    config = load_config(files=[found.path / CONFIG_FILE])
    model = XVLM(config.model)
    load_model(found, model)
    tokenizer = Tokenizer.load(found.path / TOKENIZER_FOLDER)
    return Saved(found.path, found.step, config, tokenizer, model.eval().to(device))
