"""The command-line reference as Markdown: `python -m featcache.commands.reference > docs/cli.md`."""

from __future__ import annotations

import click

from featcache.commands.json_keys import KEYS
from featcache.commands.json_parts import COSTS, METRICS
from featcache.commands.root import root

_HEAD = """# Command line

Made from the program itself by `make docs`; a test compares. Data goes to stdout, notes and progress
to stderr. Exit code 0: done; 1: failed, with one sentence that says what, where and what next; 2: called
wrongly.
"""


def reference() -> str:
    """Return the reference of every command: its help as printed, and the keys of its JSON."""
    settings = {**root.context_settings, "max_content_width": 110}
    context = click.Context(root, info_name="featcache", terminal_width=110, **settings)
    parts = [_HEAD, _help("featcache", root, context)]
    for name in root.list_commands(context):
        command = root.get_command(context, name)
        if command is not None:
            child = click.Context(command, context, info_name=name, max_content_width=110, terminal_width=110)
            parts.append(_help(f"featcache {name}", command, child))
    parts.append("## JSON\n\nWith `--json` a command prints one object on stdout and nothing else there.\n")
    for name, keys in KEYS.items():
        parts.append(_table(name, keys))
    parts.append(_table("metrics of a split", METRICS))
    parts.append(_table("costs of a run; null is unknown", COSTS))
    return "\n".join(parts)


def _help(title: str, command: click.Command, context: click.Context) -> str:
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"


def _table(title: str, keys: dict[str, str]) -> str:
    lines = [f"| `{key}` | {text} |" for key, text in keys.items()]
    return f"### {title}\n\n| key | |\n|---|---|\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    click.echo(reference(), nl=False)
