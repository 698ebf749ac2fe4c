"""The command line: one file a command, each a typed run function whose docstring is its help."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

from piecewise_training import __version__
from piecewise_training.cli import data, demo, evaluate, export, learn, predict, refine, report, train
from piecewise_training.cli.parsing import Parser, command_parser

_COMMANDS: dict[str, Any] = {
    "train": train.run,
    "evaluate": evaluate.run,
    "predict": predict.run,
    "learn": learn.run,
    "refine": refine.run,
    "report": report.run,
    "demo": demo.run,
    "export": export.run,
}
_TERMINATED = 128 + signal.SIGTERM  # the status of a stage that was told to end: the run is not finished
# What a command line is completed with before it is parsed for good.
_WITH_DEFAULTS: dict[str | None, Any] = {"train": train.with_defaults, "evaluate": evaluate.with_data_of_run}
_DATA_COMMANDS: dict[str, Any] = {"check": data.check, "download": data.download}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the arguments name; returns the exit status.

    0 is success, 1 a fault in what was given, which is said in a sentence, 2 arguments that make no sense.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command in _WITH_DEFAULTS and not {"-h", "--help"} & {*arguments}:
        arguments = _WITH_DEFAULTS[command](parser, arguments)
    parsed = parser.parse_args(arguments)
    traceback = parsed.pop("traceback")
    values = parser.instantiate(parsed)
    name = values.subcommand
    commands, chosen = _COMMANDS, values[name]
    if name == "data":
        name = chosen.subcommand
        commands, chosen = _DATA_COMMANDS, chosen[name]
    keywords = {key: value for key, value in vars(chosen).items() if key not in ("config", "print_config")}
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("piecewise_training").setLevel(logging.INFO)
    try:
        return int(commands[name](**keywords) or 0)
    except KeyboardInterrupt as end:
        print(f"piecewise {name}: interrupted{_what_to_do(end)}", file=sys.stderr)
        return 130
    except SystemExit as end:
        if end.code != _TERMINATED:
            raise
        print(f"piecewise {name}: ended from outside (SIGTERM){_what_to_do(end)}", file=sys.stderr)
        return _TERMINATED
    except (ValueError, TypeError, ArithmeticError, OSError, MemoryError, RuntimeError) as error:
        if traceback:
            raise
        print(f"piecewise {name}: {_sentence(error)}", file=sys.stderr)
        return 1


def _what_to_do(end: BaseException) -> str:
    """What an interrupted command has said of going on."""
    return "".join(f"; {said}" for said in end.args if isinstance(said, str))


def _sentence(error: Exception) -> str:
    """What an error says; of one from a worker that reads data, which carries that worker's traceback, the end."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.split(f"{type(error).__name__}: ")[-1].strip()
    if isinstance(error, RuntimeError | TypeError):
        text += "\n(`piecewise --traceback ...` shows where in the code this happened.)"
    return text


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="piecewise",
        description="Semantic segmentation with a CNN and a dense CRF, trained piecewise.",
        version=__version__,
    )
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    commands = parser.add_subcommands(metavar="COMMAND")
    for name, run in _COMMANDS.items():
        _add(commands, f"piecewise {name}", command_parser(run))
    nested = Parser(description="Looks at data sets, and fetches them.")
    _add(commands, "piecewise data", nested)
    subcommands = nested.add_subcommands(metavar="COMMAND")
    for name, run in _DATA_COMMANDS.items():
        _add(subcommands, f"piecewise data {name}", command_parser(run))
    return parser


def _add(commands: Any, prog: str, parser: Parser) -> None:
    commands.add_subcommand(prog.split()[-1], parser, help=(parser.description or "").split("\n")[0])
    parser.prog = prog
