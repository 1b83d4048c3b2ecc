"""The ``xvlm-train`` command line."""

from __future__ import annotations

from xvlm_data.command_group import command_group
from xvlm_train import __version__

main = command_group(
    "xvlm-train",
    help="""Pre-train X-VLM from manifests.

    \b
    Examples:
      xvlm-train pretrain --manifest manifests/coco --manifest manifests/vg --out runs/first
      xvlm-train evaluate runs/first --manifest manifests/coco_val
      xvlm-train report runs/first
      torchrun --standalone --nproc_per_node 8 -m xvlm_train pretrain --preset base …

    \b
    Shell completion (bash; zsh and fish alike):
      eval "$(_XVLM_TRAIN_COMPLETE=bash_source xvlm-train)"
    """,
    version=__version__,
    commands={
        "pretrain": ("xvlm_train.pretrain:pretrain_command", "Train X-VLM from manifests."),
        "evaluate": ("xvlm_train.evaluate:evaluate_command", "Retrieval and grounding, held out."),
        "curves": ("xvlm_train.pictures:curves_command", "Draw a run's loss curves."),
        "plan": ("xvlm_train.plan:plan_command", "Memory, FLOPs, epochs and hours of a run."),
        "bench": ("xvlm_train.bench.command:bench_command", "Time a training step, by phase."),
        "report": ("xvlm_train.report:report_command", "A run on one page of HTML."),
        "import": ("xvlm_train.convert:import_command", "The original's checkpoint → a folder."),
        "export": ("xvlm_train.convert:export_command", "A run → a folder for use, or a .th."),
        "verify": ("xvlm_train.verify:verify_command", "Prove the model against the original's."),
    },
)
