"""``xvlm-data push``: a manifest to a hub repository, or to any place that fsspec knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from xvlm_data.errors import UserError
from xvlm_data.manifest import SUMMARY_NAME, Manifest, open_manifest
from xvlm_data.publish.card import CARD_NAME, card, require_folder
from xvlm_data.publish.croissant import CROISSANT_NAME, describe
from xvlm_data.storage import as_path
from xvlm_data.verbs.options import json_option


def publication(folder: Path, *, references: bool = False) -> dict[str, Path | bytes]:
    """What is published of a manifest: each file's name, and where it is or what is in it.

    The dataset card and the Croissant description are written from ``manifest.json`` where the
    folder has none of its own. ``rejects.parquet`` stays at home: it quotes raw files.

    Args:
        folder: of the manifest.
        references: publish rows whose pictures are files of this machine.

    Raises:
        UserError: it is no manifest; or pictures are not in it.
    """
    manifest = open_manifest(folder)
    summary = manifest.summary or {}
    if not references:
        _require_embedded(manifest)
    files: dict[str, Path | bytes] = {
        name: folder / name for name in (shard.url.rpartition("/")[2] for shard in manifest.shards)
    }
    files[SUMMARY_NAME] = json.dumps(
        summary | {"image_root": None if not references else summary.get("image_root")},
        ensure_ascii=False,
        indent=2,
    ).encode()
    mine = folder / CARD_NAME
    files[CARD_NAME] = mine if mine.is_file() else card(manifest, summary).encode()
    described = folder / CROISSANT_NAME
    if described.is_file():
        files[CROISSANT_NAME] = described
    else:
        schema = next(manifest.batches(batch_size=1)).schema
        about = describe(summary, schema, embedded=not references)
        files[CROISSANT_NAME] = json.dumps(about, ensure_ascii=False, indent=2).encode()
    return files


def _require_embedded(manifest: Manifest) -> None:
    for batch in manifest.batches(["image.path"], 1):
        row = manifest[0]
        if (row["image"] or {}).get("bytes") is None:
            path = batch.column(0).to_pylist()[0]
            raise UserError(
                f"{manifest.info.get('name')}: its pictures are files of this machine, such as "
                f"{(path or {}).get('path')}",
                "`xvlm-data export --to hf` puts them in; or --references publishes their paths",
            )
        return


def push_to_folder(files: dict[str, Path | bytes], target: str) -> str:
    """Copy to a folder here or in an object store; ``manifest.json`` comes last.

    Raises:
        UserError: something lies there already.
    """
    place = as_path(target)
    if place.exists() and any(place.iterdir()):
        raise UserError(f"{target}: is not empty", "give another place, or empty it")
    place.mkdir(parents=True, exist_ok=True)
    for name in sorted(files, key=lambda name: name == SUMMARY_NAME):
        content = files[name]
        with (place / name).open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                with content.open("rb") as source:
                    while block := source.read(8 << 20):
                        file.write(block)
    return str(place)


def push_to_hub(
    files: dict[str, Path | bytes], repository: str, *, private: bool, message: str
) -> str:
    """Upload to a data set repository of the Hugging Face hub, as one commit; returns its address.

    Raises:
        UserError: the package is missing, nobody is logged in, or the hub refuses.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    except ImportError:
        raise UserError(
            "pushing to the hub needs the package huggingface_hub",
            "pip install -e '.[data]' in the clone",
        ) from None
    api = HfApi()
    operations = [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in files.items()
    ]
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        info = api.create_commit(
            repository, operations, commit_message=message, repo_type="dataset"
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{repository}: {str(error).splitlines()[0]}",
            "log in with `hf auth login`, and see that the name is OWNER/NAME",
        ) from error
    return str(info.repo_url)


@click.command("push")
@click.argument("manifest")
@click.argument("target")
@click.option("--public", is_flag=True, help="A new repository is public; otherwise private.")
@click.option(
    "--references", is_flag=True, help="Publish paths of pictures that are not in the manifest."
)
@click.option("--message", default="Add the manifest", show_default=True, help="Of the commit.")
@json_option
def push_command(
    manifest: str, target: str, public: bool, references: bool, message: str, as_json: bool
) -> None:
    """Publish a manifest with its dataset card and Croissant description.

    TARGET is OWNER/NAME of a data set repository on the Hugging Face hub, or a folder or URL (with
    a dot or a slash in front, or ://) that the same files are copied to: to look at them first. The
    card is written from manifest.json: counts, provenance, licence and citation of each source.
    Read it: whether you may publish the pictures is for their licences to say.

    \b
    Examples:
      xvlm-data export manifests/vg --to hf --out exports/vg
      xvlm-data push exports/vg ./preview              what would be published
      xvlm-data push exports/vg me/vg-multi-grained
    """
    files = publication(require_folder(manifest), references=references)
    if target.startswith((".", "/", "~")) or "://" in target:
        where = push_to_folder(
            files, str(Path(target).expanduser()) if "://" not in target else target
        )
    else:
        where = push_to_hub(files, target, private=not public, message=message)
    size = sum(len(c) if isinstance(c, bytes) else c.stat().st_size for c in files.values())
    told: dict[str, Any] = {"where": where, "files": sorted(files), "bytes": size}
    if as_json:
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        click.echo(f"{where}: {len(files)} files, {size / 1e6:,.1f} MB")
