"""Commands: one for flows, one for ``flowkit``; and a parser for configs."""

import click


def steps(session):
    def callback():
        session.console.data(" ".join(session.definition.steps))

    return click.Command("steps", callback=callback, help="List the steps in one line.")


@click.command()
@click.argument("name")
def hello(name):
    """Say hello."""
    click.echo(f"Hello, {name}!")


def pairs(text):
    return dict(line.split("=", 1) for line in text.splitlines())
