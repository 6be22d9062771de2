"""`fastcifar recipes`: the named settings."""

from __future__ import annotations

import textwrap

import click

from fastcifar.cli import options
from fastcifar.cli.command import Command


@click.command(cls=Command, short_help="List the recipes, or show one.")
@click.argument("name", required=False)
@options.as_json
def recipes(name: str | None, as_json: bool) -> None:
    """List the recipes, or show what NAME sets, where it comes from and what it reaches."""
    import json

    import yaml

    from fastcifar import recipes as known
    from fastcifar.cli.output import command_line, show_next, table

    chosen = [known.load(each) for each in ((name,) if name else known.names())]
    if as_json:
        click.echo(json.dumps([{"name": r.name, **r.about, "settings": r.settings} for r in chosen]))
        return
    if name is None:
        click.echo(table([(r.name, r.about.get("title", "")) for r in chosen]))
        click.echo()
        show_next(command_line("fastcifar", "recipes", "fast"), command_line("fastcifar", "train", "--recipe", "fast"))
        return
    (recipe,) = chosen
    for key, text in recipe.about.items():
        click.echo(textwrap.fill(f"{key}: {' '.join(text.split())}", 100, subsequent_indent="  "))
    click.echo("settings:")
    click.echo(textwrap.indent(yaml.safe_dump(recipe.settings, sort_keys=False, allow_unicode=True), "  ").rstrip())
    show_next(command_line("fastcifar", "train", "--recipe", name))
