"""`evomerge completion SHELL`: what a shell reads to complete commands, options and names."""

import click


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete what is typed after `evomerge`.

    Commands, options, run directories, campaign files, candidates to pick, keys after --set. For
    bash and zsh write the line below into ~/.bashrc or ~/.zshrc; fish reads
    ~/.config/fish/completions/evomerge.fish.

    \b
      eval "$(evomerge completion bash)"
      evomerge completion fish > ~/.config/fish/completions/evomerge.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    main = context.find_root().command
    click.echo(kind(main, {}, "evomerge", "_EVOMERGE_COMPLETE").source())
