"""From a command's typed run function to its parser: flags, YAML and help from one signature and docstring."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, Namespace

Command = Callable[..., int | None]


class Parser(ArgumentParser):
    """A parser that refuses what it does not know with the nearest name that it does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Ends the program with the message and a suggestion; the usage would bury them."""
        del ex
        near = _nearest(message, self._names())
        hint = f" Did you mean {near}?" if near else ""
        sentence = _sentence(message)
        sys.stderr.write(f"{self.prog}: {sentence}.{hint}\nSee {self.prog} --help.\n")
        sys.exit(2)

    def dump(self, cfg: Namespace, **options: Any) -> str:
        """The configuration as YAML; jsonargparse cannot write dataclasses that are defaults in a list."""
        cfg = cfg.clone()
        for key, value in [*cfg.items()]:
            if isinstance(value, list | tuple) and any(map(dataclasses.is_dataclass, value)):
                cfg[key] = [dataclasses.asdict(item) for item in value]
        return super().dump(cfg, **options)

    def _names(self) -> Iterable[str]:
        for parser in (self, *self._subparsers_by_name().values()):
            for action in parser._actions:
                yield from (name.removeprefix("--") for name in action.option_strings if name.startswith("--"))
                yield from action.choices or () if action.dest == "subcommand" else ()

    def _subparsers_by_name(self) -> dict[str, ArgumentParser]:
        choices: dict[str, ArgumentParser] = {}
        for action in self._actions:
            if action.dest == "subcommand":
                choices.update(getattr(action, "_name_parser_map", {}))
        return choices


def command_parser(run: Command, **kwargs: Any) -> Parser:
    """The parser of a command.

    A list without a default becomes positional arguments, a False a switch; everything else, dataclasses with all
    their fields included, an option and a key of the YAML that --config reads.
    """
    documentation = docstring_parser.parse(run.__doc__ or "")
    description = "\n\n".join(filter(None, (documentation.short_description, documentation.long_description)))
    helps = {parameter.arg_name: parameter.description for parameter in documentation.params}
    parser = Parser(description=description, usage="%(prog)s [options]", **kwargs)
    parser.add_argument("--config", action="config", help="YAML file with any of the options below")
    special: set[str | int] = set()
    hints = get_type_hints(run)
    for name, parameter in inspect.signature(run).parameters.items():
        if parameter.default is inspect.Parameter.empty and hints[name] == list[str]:
            parser.add_argument(name, nargs="+", type=str, help=helps[name])
        elif parameter.default is False:
            parser.add_argument(f"--{name}", action="store_true", help=helps[name])
        else:
            continue
        special.add(name)
    parser.add_function_arguments(run, skip=special, sub_configs=False)
    return parser


def _sentence(message: str) -> str:
    """Jsonargparse's message in one sentence without the names of Python's types."""
    message = " ".join(message.replace("a typing.Literal[", "one of [").split()).rstrip(".")
    numbers = re.search(r'key "([\w.]+)": .*Expected a tuple with (\d+) elements.*Given value: (.*)', message)
    if numbers:
        return f"{numbers[1]} must be a list of {numbers[2]}; got {numbers[3]}"
    a_list = re.search(r'key "([\w.]+)": .*<class \'tuple\'>.*Given value: (.*)', message)
    if a_list:
        return f'{a_list[1]} must be a list, as in --{a_list[1]} "[A,B]"; got {a_list[2]}'
    return message


def _nearest(message: str, names: Iterable[str]) -> str | None:
    """The known name nearest to the unknown one that a message complains of."""
    patterns = (
        r"unrecognized arguments: --([\w.]+)",
        r"does not accept (?:option|nested key) '([\w.]+)'",
        r"[Kk]ey ['\"]([\w.]+)['\"] is not expected",
        r"invalid choice: '([\w.]+)'",
    )
    unknown = next((found[1] for pattern in patterns if (found := re.search(pattern, message))), None)
    if unknown is None:
        return None
    names = list(names)
    misplaced = [name for name in names if name.split(".")[-1] == unknown.split(".")[-1]]
    if misplaced:  # the right name under another heading, such as training.seed
        return misplaced[0]
    known = {name.split(".")[-1]: name for name in names} | {name: name for name in names}
    near = difflib.get_close_matches(unknown, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        unknown.split(".")[-1], known, n=1, cutoff=0.6
    )
    return known[near[0]] if near else None


def plain(value: Any) -> Any:
    """Tuples as lists, which is what YAML gives back."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
