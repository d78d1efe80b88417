"""`featcache layers`: where in a backbone features can be read."""

from __future__ import annotations

import click

from featcache.commands import options
from featcache.commands.output import say, show_json, show_table


@click.command(short_help="List the nodes of a backbone with their output shapes.")
@click.argument("backbone")
@click.option("--image-size", type=click.IntRange(1), default=224, show_default=True)
@options.as_json
def layers(backbone: str, image_size: int, as_json: bool) -> None:
    """List the nodes of a backbone: what `extract --layer` takes, with the shape of each for one image.

    The node marked with * is the one `extract` reads without --layer.
    """
    from featcache.backbones import catalogue

    found = catalogue.layers(backbone, image_size)
    network = catalogue.build(backbone)
    default = {node.name for node in catalogue.resolve_nodes(backbone, network)}
    if as_json:
        rows = [
            {"node": row.name, "shape": list(row.shape), "kind": row.kind, "parameters": row.parameters}
            for row in found
        ]
        show_json({"backbone": backbone, "default": sorted(default), "layers": rows})
        return
    table = [
        [
            "*" if row.name in default else "",
            row.name,
            " × ".join(map(str, row.shape)),
            row.kind,
            f"{row.parameters:,}",
        ]
        for row in found
    ]
    show_table(["", "node", "shape", "kind", "parameters"], table, right=["parameters"])
    say("* read without --layer")
