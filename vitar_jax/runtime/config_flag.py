"""The flag --config: a recipe file. Flags such as --config.stages.sft.steps=10 change its keys, and those with defaults too."""

import re
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from vitar_jax.errors import ConfigError
from vitar_jax.runtime.config import nearest, with_defaults
from vitar_jax.runtime.registry import Registry

flags.disclaim_key_flags()  # --config belongs to the command that calls `define`, so the command's --help lists it
_FILES: Registry = Registry("recipe")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


class RecipeParser(flags.ArgumentParser):
    """Reads a recipe file and sets the keys that it leaves to their defaults.

    Attributes:
      schema: Dataclass that the config is checked against later.
      default: Path of the file that is read without the flag, or None.
      config: The config that was read last; None before.
    """

    def __init__(self, schema: type, default: str | None = None):
        self.schema, self.default = schema, default
        self.config: ConfigDict | None = None

    def parse(self, argument: str) -> ConfigDict:
        """Returns the config of a file.

        Raises:
          ConfigError: If the file cannot be read, or a key that decides about others is wrong.
        """
        if not argument.endswith(".py"):
            raise ConfigError(f"--config={argument}: expected a Python file")
        get_config = _FILES.find(f"{argument}:get_config")
        try:
            config = get_config()
        except Exception as error:  # Whatever the file's code raises.
            raise ConfigError(f"{argument}: get_config() raised {type(error).__name__}: {error}") from error
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"{argument}: get_config() returned {type(config).__name__}, expected ml_collections.ConfigDict")
        self.config = with_defaults(self.schema, config).lock()
        return self.config

    def flag_type(self) -> str:
        return "recipe file"


def define(
    schema: type, help: str, *, default: str | None = None, values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder[ConfigDict]:
    """Defines --config, the one flag of this name in all commands.

    Args:
      schema: Dataclass whose defaults the config takes.
      default: File to read if the flag is not given. `arguments` puts it into the command line.
    """
    holder = config_flags.DEFINE_config_file("config", None, help, flag_values=values)
    flags.declare_key_flag("config", values)
    values["config"].parser = RecipeParser(schema, default)  # in place of one that knows no defaults
    return holder


def arguments(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Returns the command line with the default file of --config, where the command has one and the line names none.

    A default that the flag itself held would be read, and could fail, while flags are being defined.
    """
    parser = _parser(values)
    if parser is None or parser.default is None or any(re.match(r"--?config(=|$)", word) for word in argv):
        return [*argv]
    return [*argv[:1], f"--config={parser.default}", *argv[1:]]


def wrong_key(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> str:
    """Returns what is wrong with the first flag that changes a key which the config does not have, or an empty string."""
    parser = _parser(values)
    if parser is None or parser.config is None:
        return ""
    for match in filter(None, map(_OVERRIDE.match, argv)):
        holder, above = parser.config, "config"
        for key in match[1].split("."):
            if not isinstance(holder, ConfigDict):
                return f"--config.{match[1]}: {above} is {holder!r} and has no keys"
            if key not in holder:
                hint = nearest(key, holder) or nearest(key, _keys(parser.config))
                return f"--config.{match[1]}: {above} has no key {key!r}{hint}"
            holder, above = holder[key], f"{above}.{key}"
    return ""


def _parser(values: flags.FlagValues) -> RecipeParser | None:
    """Returns the parser of --config, or None if the command has no such flag."""
    parser = values["config"].parser if "config" in values else None
    return parser if isinstance(parser, RecipeParser) else None


def _keys(config: ConfigDict) -> Iterator[str]:
    """Yields the keys of the config and of everything in it."""
    for key, value in config.items():
        yield key
        if isinstance(value, ConfigDict):
            yield from _keys(value)
