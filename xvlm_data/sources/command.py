"""``xvlm-data sources``: which releases can be built, and on what terms."""

from __future__ import annotations

import json
from typing import Any

import click

from xvlm_data.errors import UserError
from xvlm_data.sources import SOURCES, get_source, plugins


def described() -> list[dict[str, Any]]:
    """Every source, ours and those of other packages: name, package, licence, citation, homepage.

    A source that cannot be loaded has an ``error`` instead.
    """
    packages = dict.fromkeys(SOURCES, "xvlm") | {
        name: point.dist.name if point.dist else point.module for name, point in plugins().items()
    }
    found: list[dict[str, Any]] = []
    for name, package in packages.items():
        about: dict[str, Any] = {"name": name, "package": package}
        try:
            source = get_source(name)
        except UserError as error:
            about["error"] = str(error)
        else:
            about |= {
                "licence": source.licence,
                "citation": source.citation,
                "homepage": source.homepage,
            }
        found.append(about)
    return found


@click.command("sources")
@click.option("--cite", is_flag=True, help="Print the citations, in BibTeX.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def sources_command(cite: bool, as_json: bool) -> None:
    """List the releases that can be built, with licence and package.

    Other packages add theirs through entry points of the group xvlm_data.sources; see
    docs/guides/new-source.md.

    \b
    Examples:
      xvlm-data sources
      xvlm-data sources --cite > data.bib
    """
    found = described()
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    if cite:
        entries = "\n\n".join(about.get("citation") or "" for about in found)
        click.echo("\n\n".join(dict.fromkeys(filter(None, entries.split("\n\n")))))
        return
    from rich.text import Text

    from xvlm_data.console import plain_table, stdout

    table = plain_table("", ("source", "left"), ("package", "left"), ("licence", "left"))
    for about in found:
        said = Text(about["error"], "red") if "error" in about else Text(about["licence"])
        table.add_row(about["name"], about["package"], said)
    stdout.print(table)
