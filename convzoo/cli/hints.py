"""Which flags a message of the library is about: it names what is wrong with what, the command line adds the flag."""

from collections.abc import Sequence

import typer

# By the parameter's name: more than the bare flag.
HINTS = {
    "download": "--download fetches CIFAR-10 there",
    "on_bad_sample": "--on-bad-sample skip leaves such pictures out",
    "fresh": "--fresh",
    "workers": "--workers 0 loads in the main process",
}
OTHER_VERBS = {
    "classes": "convzoo convert --classes FILE names them",
    "cfg": "convzoo convert FILE --cfg CFG reads it",
}


def hint(options: Sequence[str], argv: Sequence[str], app: typer.Typer) -> str:
    """Return ` (--data; --download ...)`: those of the options that the verb in argv has, or nothing."""
    command = typer.main.get_command(app)
    for word in argv:
        command = getattr(command, "commands", {}).get(word, command)
    flags = {parameter.name: parameter.opts[0] for parameter in command.params}
    known = {**OTHER_VERBS, **flags, **{name: text for name, text in HINTS.items() if name in flags}}
    shown = [known[name] for name in options if name in known]
    return f" ({'; '.join(shown)})" if shown else ""
