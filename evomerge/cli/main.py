"""The `evomerge` command: a thin skin over the library.

Exit codes: 0 done, 1 failed, 2 bad input (nothing loaded, nothing written), 130 interrupted.

Each command is a module of `evomerge.cli.commands`, and imports what it needs when it runs, so that
`--help` is there at once.
"""

import click

from evomerge import __version__
from evomerge.cli.commands import commands
from evomerge.environment import mute_imports


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="evomerge")
def main() -> None:
    """Evolutionary search for merges of fine-tuned models.

    Describe sources, a search space and fitnesses in one YAML file; `evomerge init` asks for them
    and writes it. Then:

    \b
      evomerge check  search_spaces/crosslingual-maths.yaml
      evomerge run    search_spaces/crosslingual-maths.yaml
      evomerge front  runs/crosslingual-maths
      evomerge export runs/crosslingual-maths merged/ --pick best
    """
    mute_imports()


for command in commands():
    main.add_command(command)


if __name__ == "__main__":
    main()
