"""``xvlm-data serve``: manifests in a browser."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("serve")
@click.argument("manifests", metavar="MANIFEST...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="Port to listen at; 0 takes a free one.",
)
@click.option(
    "--allow-host",
    "names",
    metavar="NAME",
    multiple=True,
    help="With --host: a name by which browsers know this machine; repeatable.",
)
@click.option(
    "--image-root",
    metavar="DIR",
    help="Where referenced images lie; no image outside it is served [as the manifest records].",
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path, readable=False),
    help="Hold the counts against this recipe [one that lies beside MANIFEST].",
)
@click.option(
    "--max-rows",
    type=click.IntRange(min=0),
    default=400_000,
    show_default=True,
    help="Distributions are of so many rows, evenly spread; 0 counts all.",
)
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
def serve_command(
    manifests: tuple[str, ...],
    host: str,
    port: int,
    names: tuple[str, ...],
    image_root: str | None,
    recipe: Path | None,
    max_rows: int,
    show: bool,
) -> None:
    """Look at whole manifests in a browser: search, SQL, comparison, export.

    Each MANIFEST is a .parquet file, a folder with manifest.json, or a glob (quoted), and stands by
    itself. Only this machine can connect, unless --host says otherwise; nothing can be changed, and
    selections are downloaded as new manifests. Needs: pip install -e '.[serve]' in the clone.

    \b
    Examples:
      xvlm-data serve manifests/vg
      xvlm-data serve manifests/coco manifests/coco_v2 --open
      xvlm-data serve manifests/vg --image-root /data/vg --port 9000
      ssh -L 8765:localhost:8765 server     then open http://localhost:8765 here
    """
    from xvlm_data.errors import UserError

    try:
        import uvicorn

        from xvlm_data.serve.app import make_app
        from xvlm_data.serve.guard import LOOPBACK
    except ModuleNotFoundError as error:
        if error.name not in ("uvicorn", "starlette", "anyio"):
            raise
        raise UserError(
            f"serving needs {error.name}, which is not installed",
            "pip install -e '.[serve]' in the clone",
        ) from None
    from xvlm_data.console import stderr
    from xvlm_data.recipe import read_recipe
    from xvlm_data.serve.catalogue import Catalogue
    from xvlm_data.serve.database import Database
    from xvlm_data.serve.listen import listen

    if recipe is not None:
        read_recipe(recipe)  # a wrong one is told now, not in the background
    catalogue = Catalogue.open(manifests, image_root)
    try:
        database = Database([(entry.name, entry.manifest) for entry in catalogue.entries])
    except UserError as error:
        stderr.print(f"note: no SQL and no comparison: {error}")
        database = None
    sock, address = listen(host, port)
    if host not in LOOPBACK:
        stderr.print(
            f"warning: everybody who can reach {host} can see these manifests and their images",
            style="yellow",
        )
    app = make_app(catalogue, database, {*LOOPBACK, host, *names})
    catalogue.count(recipe, max_rows)
    click.echo(f"serving {len(catalogue.entries)} manifest(s) at {address}  (Ctrl-C ends it)")
    if show:
        click.launch(address)
    config = uvicorn.Config(app, log_level="error", lifespan="off", server_header=False)
    uvicorn.Server(config).run(sockets=[sock])
