"""``xvlm-data subset``: some rows at random, always the same ones."""

from __future__ import annotations

import click

from xvlm_data.verbs.options import json_option, manifests_argument, open_all, out_option, report


@click.command("subset")
@manifests_argument
@click.option("-n", "--rows", type=click.IntRange(1), required=True, help="How many rows.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another one, other rows.")
@out_option
@json_option
def subset_command(
    manifests: tuple[str, ...], rows: int, seed: int, out: str, force: bool, as_json: bool
) -> None:
    """Write a random subset of the rows as a manifest.

    What is chosen follows from the seed and the ids alone: not from the order of the rows or the
    files they are in. A smaller subset is part of a larger one of the same seed.

    (`xvlm-data sample` is something else: it makes miniature raw releases.)

    \b
    Examples:
      xvlm-data subset manifests/cc3m -n 10000 --out manifests/cc3m_10k
      xvlm-data subset manifests/coco manifests/vg -n 500 --seed 1 --out manifests/try
    """
    from xvlm_data.verbs.choose import derive_rows, subset
    from xvlm_data.verbs.derive import Step

    manifest = open_all(manifests)
    step = Step("subset", {"rows": rows, "seed": seed}, [manifest])
    summary = derive_rows(manifest, subset(manifest, rows, seed), out, step, force=force)
    few = f"-n {rows:,}, but there are only {len(manifest):,} rows: all of them were taken"
    report(summary, out, as_json=as_json, note=few if rows > len(manifest) else None)
