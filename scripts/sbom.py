"""What is inside: the environment as a CycloneDX document."""

from __future__ import annotations

import click

from kit.environment import sbom as materials
from scripts import cli


@click.command()
def sbom() -> None:
    """Print the environment as a bill of materials, CycloneDX 1.6: every package with its hashes, licence and needs.

    The same environment gives the same bytes.

    \b
    make -s sbom > sbom.json
    """
    document = materials.of_environment()
    cli.result(materials.as_json(document))
    cli.note(f"{len(document['components'])} packages")


if __name__ == "__main__":
    cli.main(sbom)
