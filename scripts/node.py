"""This machine as a node of a cluster, until Ctrl-C."""

from __future__ import annotations

import time

import click
from click.core import ParameterSource

from kit.batch import cluster
from kit.errors import Command, KitError
from scripts import cli
from scripts.hints import words
from scripts.options import takes


@click.command()
@takes("node")
@click.pass_context
def node(context: click.Context, head: str | None, listen: str, port: int) -> None:
    """Answer prompts of `make batch RAY=…` on this machine.

    Alone it is the head of a cluster, for this machine until LISTEN is typed. Nodes are Linux machines with the same
    commit, Python, packages and model; the others take no prompt.

    \b
    make node LISTEN=0.0.0.0
    make node HEAD=10.0.0.1 LISTEN=0.0.0.0
    """
    if context.get_parameter_source("port") is ParameterSource.DEFAULT:
        port = cluster.PORT
    asked = cluster.prepare(head, listen, port)
    cli.note("starting Ray …")
    with cluster.running(asked) as child:
        cluster.wait_until_up(child)
        for line in told(asked):
            cli.note(line)
        while child.poll() is None:
            time.sleep(0.5)
    raise KitError("Ray ended by itself: of a node, its head may be gone.", "the same command")


def told(asked: cluster.Node) -> list[str]:
    """What a person has to know of a node that is up."""
    if asked.on_loopback:
        return [
            "ready, for this machine alone. Many prompts: "
            + words([Command("batch", IN="prompts.jsonl", OUT="answers.jsonl", RAY="auto")]),
            "Ctrl-C ends it",
        ]
    lines = []
    if asked.head:
        lines.append(f"ready, as a node of {asked.head}")
    else:
        join = words([Command("node", HEAD=f"{asked.host}:{asked.port}", LISTEN="0.0.0.0")])
        lines += [
            f"ready, as the head. Another machine: copy {cluster.TOKEN.name} into its clone, then: {join}",
            "many prompts: " + words([Command("batch", IN="prompts.jsonl", OUT="answers.jsonl", RAY="auto")]),
        ]
    return [
        *lines,
        f"Ray listens on all networks of this machine, port {asked.port} and others above 1024; what goes over them",
        f"can be read. Whoever has {cluster.TOKEN.name} can run any program on every node: give it to nobody else.",
        "Ctrl-C ends it",
    ]


if __name__ == "__main__":
    cli.main(node)
