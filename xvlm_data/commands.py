"""The ``xvlm-data`` command line."""

from __future__ import annotations

from xvlm_data import __version__
from xvlm_data.command_group import command_group

main = command_group(
    "xvlm-data",
    help="""Turn official vision-language releases into one Parquet manifest.

    \b
    Examples:
      xvlm-data sample --out raw --images 64     miniature releases, to try everything with
      xvlm-data build --source coco              raw/coco -> manifests/coco
      xvlm-data inspect manifests/coco           what is in it

    \b
    Shell completion (bash; zsh and fish alike):
      eval "$(_XVLM_DATA_COMPLETE=bash_source xvlm-data)"
    """,
    version=__version__,
    commands={
        "sample": (
            "xvlm_data.sample.command:sample_command",
            "Write miniature releases in their official raw layouts.",
        ),
        "sources": (
            "xvlm_data.sources.command:sources_command",
            "List the releases that can be built, and on what terms.",
        ),
        "build": (
            "xvlm_data.build_command:build_command",
            "Turn an official raw release into a manifest.",
        ),
        "download": (
            "xvlm_data.download.command:download_command",
            "Download the images of a list of URLs into a manifest.",
        ),
        "inspect": (
            "xvlm_data.inspect.command:inspect_command",
            "Show what a manifest holds; check it; draw it.",
        ),
        "head": ("xvlm_data.verbs.head:head_command", "Show the first rows."),
        "stats": ("xvlm_data.verbs.stats:stats_command", "Count several manifests side by side."),
        "diff": ("xvlm_data.verbs.diff:diff_command", "Compare two manifests, image by image."),
        "subset": ("xvlm_data.verbs.subset:subset_command", "Write some rows at random."),
        "filter": (
            "xvlm_data.verbs.filter:filter_command",
            "Write the rows for which an SQL condition holds.",
        ),
        "merge": ("xvlm_data.verbs.merge:merge_command", "Write several manifests as one."),
        "split": ("xvlm_data.verbs.split:split_command", "Write one manifest as several."),
        "export": (
            "xvlm_data.formats.command:export_command",
            "Write a manifest as coco, webdataset, xvlm-jsonl or hf.",
        ),
        "import": (
            "xvlm_data.formats.command:import_command",
            "Make a manifest of xvlm-jsonl, coco or webdataset files.",
        ),
        "push": ("xvlm_data.publish.push:push_command", "Publish a manifest, with a card."),
        "serve": (
            "xvlm_data.serve.command:serve_command",
            "Look at whole manifests in a browser.",
        ),
        "verify": (
            "xvlm_data.verify.command:verify_command",
            "Hold built manifests against a recipe's expected counts.",
        ),
        "leaks": (
            "xvlm_data.leaks.command:leaks_command",
            "Prove that manifests hold no image of an evaluation set.",
        ),
    },
)
