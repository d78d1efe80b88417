"""The command `featcache` and the one place where errors become messages and exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from featcache import limits
from featcache.commands.output import say, show_json
from featcache.errors import FeatcacheError
from featcache.version import VERSION

# In the order people meet them; each is imported only when it is called or helped with.
COMMANDS = {
    "demo": "demo:demo",
    "extract": "extract:extract",
    "train-head": "train:train_head",
    "sweep": "sweep:sweep",
    "finetune": "finetune:finetune",
    "evaluate": "train:evaluate",
    "predict": "predict:predict",
    "export": "export:export",
    "runs": "runs:runs",
    "compare": "compare:compare",
    "report": "report:report",
    "study": "study:study",
    "ls": "caches:ls",
    "info": "caches:info",
    "verify": "verify:verify",
    "gc": "gc:gc",
    "layers": "layers:layers",
    "doctor": "doctor:doctor",
}


# What torch says where the system gives no memory; the third is oneDNN's, which cannot get its buffers then,
# the last Python's, for which there is no room for a thread's stack.
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "could not create a primitive", "can't start new thread")
_UNSAID = ("without exception set", "without setting an exception")  # by Python, where memory ended unsaid

_AFTER_A_STOP = {
    "extract": "What was committed is kept: the same command goes on from there.",
    "verify": "What was committed is kept: the same command goes on from there.",
    "sweep": "The runs that were finished are kept: the same command trains those that are missing.",
    "study": "The systems that were finished are kept: the same command goes on from there.",
    "finetune": "A run that kept checkpoints goes on from its last epoch: featcache finetune --resume RUN.",
    "train-head": "Nothing was stored, unless the run kept checkpoints: then --resume RUN goes on with it.",
}


class Commands(click.Group):
    """A group whose commands are imported when they are needed, listed in the order of the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(f"featcache.commands.{module}"), name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="featcache")
def root() -> None:
    """Transfer learning on frozen features: run the backbone once, train heads in seconds.

    \b
    featcache demo                                try it, offline, in under a minute
    featcache extract --backbone vgg16            images → features, once
    featcache train-head --head mlp               features → head, in seconds
    """
    limits.check()


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code: 0 done, 1 failed, 2 called wrongly."""
    as_json = "--json" in arguments
    try:
        code = root.main(list(arguments), prog_name="featcache", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except FeatcacheError as error:
        return _failed(error.message, error.hint, as_json)
    except click.ClickException as error:
        if as_json:
            show_json({"error": error.format_message(), "hint": "featcache COMMAND --help"})
        else:
            error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        command = arguments[0] if arguments else ""
        return _failed("Stopped.", _AFTER_A_STOP.get(command, ""), as_json)
    except BrokenPipeError:
        # The reader of our output is gone; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError as error:
        return _failed(*_out_of_memory(error), as_json)
    except RuntimeError as error:  # torch's error for it is no MemoryError
        if type(error).__name__ != "OutOfMemoryError" and not any(text in str(error) for text in _NO_MEMORY):
            raise
        return _failed(*_out_of_memory(error), as_json)
    except SystemError as error:
        if not any(text in str(error) for text in _UNSAID):
            raise
        return _failed(*_out_of_memory(error), as_json)
    except OSError as error:
        return _failed(f"{error.strerror or error}: {error.filename or 'no file named'}.", "", as_json)


def _out_of_memory(error: Exception) -> tuple[str, str]:
    said = str(error).partition("\n")[0]
    hint = "What was committed is kept. End other programs, or give a smaller --batch-size or --workers."
    return f"Out of memory{': ' + said.rstrip('.') if said else ''}.", hint


def _failed(message: str, hint: str, as_json: bool) -> int:
    if as_json:
        show_json({"error": message, "hint": hint})
    else:
        say(f"Error: {message}" + (f"\n{hint}" if hint else ""))
    return 1
