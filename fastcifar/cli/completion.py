"""`fastcifar completion`: the script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from fastcifar.cli.command import Command
from fastcifar.cli.param_types import Choice

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
PROGRAM, VARIABLE = "fastcifar", "_FASTCIFAR_COMPLETE"


@click.command(cls=Command, short_help="Print the script that completes commands in a shell.")
@click.argument("shell", type=Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print the script that completes commands in a shell.

    \b
    bash: add to ~/.bashrc   source <(fastcifar completion bash)
    zsh:  add to ~/.zshrc    source <(fastcifar completion zsh)
    fish: fastcifar completion fish > ~/.config/fish/completions/fastcifar.fish
    """
    complete = SHELLS[shell](context.find_root().command, {}, PROGRAM, VARIABLE)
    click.echo(complete.source_template % complete.source_vars(), nl=False)
