"""Parse the command line of ``python -m mxsweep``: flags, and between them overrides as ``block_size=16``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mxsweep.config.checks import is_folder
from mxsweep.config.knobs import is_of_sweep
from mxsweep.config.override_grammar import excerpt
from mxsweep.terminal.errors import ConfigError

SHELLS = ("bash", "fish", "zsh")
# Flags of Hydra's that mean nothing here, and why.
REFUSED = {
    "config_path": "mxsweep's own config is always read; files of your own are added by --config-dir FOLDER",
    "config_name": "mxsweep's own config is always read; files of your own are added by --config-dir FOLDER",
    "experimental_rerun": "a run is repeated by its overrides, and a sweep goes on by resume=true",
}


@dataclass(frozen=True)
class CommandLine:
    """Hold a parsed command line.

    Attributes:
        overrides: the words that are no flags.
        multirun: whether -m stands there.
        config_dir: the further folder of config groups, absolute.
        version: whether the version is asked for.
        asks_hydra: the flags of a question about the config, which Hydra answers; none where something is to be run.
        completion: what a shell asks for or is to be told of tab completion.
    """

    overrides: list[str]
    multirun: bool
    config_dir: Path | None
    version: bool
    asks_hydra: tuple[str, ...]
    completion: str | None


def parse_command_line(words: Sequence[str]) -> CommandLine:
    """Parse the words of ``python -m mxsweep``.

    Raises:
        ConfigError: a flag that is not there or has no use here, and a --config-dir that is no folder.
    """
    flags = _parser().parse_intermixed_args(words)
    for flag, why in REFUSED.items():
        if getattr(flags, flag) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')}: has no use here: {why}")
    config_dir = Path(flags.config_dir) if flags.config_dir else None
    if flags.config_dir is not None and not (config_dir and is_folder(config_dir)):
        raise ConfigError(f"--config-dir: {flags.config_dir!r} is not a folder")
    return CommandLine(
        overrides=[] if flags.shell_completion else flags.overrides,
        multirun=flags.multirun,
        config_dir=config_dir and config_dir.resolve(),
        version=flags.version,
        asks_hydra=_question(flags),
        completion=_completion(flags.overrides) if flags.shell_completion else None,
    )


def flags_help() -> str:
    """Return what ``--help`` says of the flags."""
    text = _parser().format_help()
    return text[text.index("Flags") :]


def check_no_sweep_knobs(words: Sequence[str], config_dir: Path | None) -> None:
    """Refuse what a command that runs nothing (inspect, sensitivity) has no use for. Raises ConfigError.

    Those are the knobs of sweeps and launchers, and a ``config_dir`` that is no folder.
    """
    if config_dir is not None and not is_folder(config_dir):
        raise ConfigError(f"--config-dir: {str(config_dir)!r} is not a folder")
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        if is_of_sweep(key):
            raise ConfigError(f"{excerpt(key)}: has no use here, where nothing is run")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say in one line what is wrong, instead of a page of usage."""
        raise ConfigError(f"{excerpt(message)}; `python -m mxsweep --help` lists the flags and knobs")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m mxsweep", add_help=False)
    flags = parser.add_argument_group("Flags")
    flags.add_argument("-m", "--multirun", action="store_true", help="run every combination of the values given")
    flags.add_argument("-cd", "--config-dir", metavar="FOLDER", help="a further folder of config files, as conf/ is")
    flags.add_argument("-h", "--help", action="store_true", help="show the knobs and the flags")
    flags.add_argument("--version", action="store_true", help="show mxsweep's version")
    flags.add_argument(
        "-c", "--cfg", choices=("job", "hydra", "all"), metavar="WHAT", help="show the config: job, hydra or all"
    )
    flags.add_argument("--resolve", action="store_true", help="with --cfg: with references to other knobs replaced")
    flags.add_argument("-p", "--package", metavar="PART", help="with --cfg: one part of the config, as model")
    flags.add_argument(
        *("-i", "--info"),
        nargs="?",
        const="all",
        choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        metavar="WHAT",
        help="show how Hydra comes to the config: all, config, defaults, defaults-tree, plugins, searchpath",
    )
    flags.add_argument(
        *("-sc", "--shell-completion"),
        action="store_true",
        help='tab completion of the installed command: eval "$(mxsweep -sc install=bash)", or fish, zsh',
    )
    # Understood, and not worth a line of the help.
    for names in (("-r", "--run"), ("--hydra-help",)):
        parser.add_argument(*names, action="store_true", help=argparse.SUPPRESS)
    for names in (("-cp", "--config-path"), ("-cn", "--config-name"), ("--experimental-rerun",)):
        parser.add_argument(*names, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    return parser


def _question(flags: argparse.Namespace) -> tuple[str, ...]:
    if flags.package is not None and not flags.cfg:
        raise ConfigError("--package: names a part of the config that --cfg job shows; give both, or neither")
    if flags.help or flags.hydra_help:
        return ("--help",)
    if flags.cfg:
        package = ("--package", flags.package) if flags.package is not None else ()
        return ("--cfg", flags.cfg, *package, *["--resolve"] * flags.resolve)
    return ("--info", flags.info) if flags.info else ()


def _completion(words: Sequence[str]) -> str:
    allowed = [f"{what}={shell}" for what in ("install", "uninstall", "query") for shell in SHELLS]
    if len(words) != 1 or words[0] not in allowed:
        raise ConfigError(
            "--shell-completion: takes install=SHELL or uninstall=SHELL, SHELL being bash, fish or zsh; to have it: "
            'eval "$(mxsweep -sc install=bash)"'
        )
    if sys.argv[0].endswith(".py"):
        raise ConfigError(
            "--shell-completion: is for the installed command; `python -m mxsweep` cannot be completed. To have it: "
            f'eval "$(mxsweep -sc {words[0]})"'
        )
    return words[0]
