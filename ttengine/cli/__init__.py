"""The command line: `ttengine collect | train | plan | evaluate | info | demo | experiment | report`.

Exit codes: 0 done; 1 something is wrong with the input, said in one line on standard error; 2 wrong usage; 130
interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import TextIO

from ttengine.errors import DataWarning, TTEngineError

COMMANDS = {
    "collect": "roll policies out in a simulator and write a dataset",
    "train": "train a model on a dataset",
    "plan": "plan once from an observation",
    "evaluate": "let a model control an environment: returns, scores, latencies, a video",
    "info": "say what is in a model file or a dataset",
    "demo": "all of it once, small: collect, train, plan, report",
    "experiment": "one of the paper's experiments: data, training, evaluation, table, plot, page",
    "report": "the pages of several experiments side by side",
}

DONE, WRONG_INPUT, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: arguments after the program's name; None takes those of this process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return DONE if arguments else WRONG_USAGE
    if arguments[0] in ("-V", "--version"):
        print(f"ttengine {version('ttengine')}")
        return DONE
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"
        print(f"ttengine: no command {command!r}{hint}", file=sys.stderr)
        return WRONG_USAGE
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        warnings.showwarning = _show_warning
        return _run(command, rest)


def _run(command: str, arguments: list[str]) -> int:
    try:
        # late: importing Torch takes a second, which `--version` and a typing error need not wait for
        importlib.import_module(f"ttengine.cli.{command}").run(arguments)
    except (TTEngineError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"ttengine {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print(f"ttengine {command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # tyro's: 0 after --help, 2 after a usage error
        return stop.code if isinstance(stop.code, int) else WRONG_USAGE
    return DONE


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items())
    return f"""usage: ttengine COMMAND ...

Train the Trajectory Transformer on logged trajectories and plan with it inside a control loop.

{commands}

A first look:    ttengine demo --out runs/demo
Your own data:   ttengine info mine.npz
                 ttengine train mine.npz --out runs/mine
                 ttengine evaluate runs/mine/model.safetensors --environment Hopper-v4
Each command:    ttengine COMMAND --help"""


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
    line: str | None = None,
) -> None:  # fmt: skip
    """Write a warning about data as a sentence, any other as Python does."""
    if issubclass(category, DataWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, filename, lineno, line), end="", file=sys.stderr)
