"""The flag --config, a recipe file. Flags such as --config.stages.sft.steps=10 change its keys, also keys with defaults."""

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
    """The parser of --config, which reads a recipe file and sets missing keys to their defaults.

    Attributes:
      schema: Dataclass that the config is checked against later.
      default: Path of the file to read if the flag is not given, or None.
      config: The last config that was read, or None.
    """

    def __init__(self, schema: type, default: str | None = None):
        self.schema, self.default = schema, default
        self.config: ConfigDict | None = None

    def parse(self, argument: str) -> ConfigDict:
        """Returns the config of a file.

        Raises:
          ConfigError: If the file cannot be read, or a key that determines other keys is invalid.
        """
        if not argument.endswith(".py"):
            raise ConfigError(f"--config={argument}: expected a Python file")
        get_config = _FILES.find(f"{argument}:get_config")
        try:
            config = get_config()
        except Exception as error:  # the file's code can raise any exception
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
    values["config"].parser = RecipeParser(schema, default)  # replaces a parser without defaults
    return holder


def arguments(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Returns the command line, with the default file of --config added if the line names no file and a default exists.

    A default of the flag itself would be read while flags are being defined, and reading it could fail.
    """
    parser = _parser(values)
    if parser is None or parser.default is None or any(re.match(r"--?config(=|$)", word) for word in argv):
        return [*argv]
    return [*argv[:1], f"--config={parser.default}", *argv[1:]]


def wrong_key(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> str:
    """Returns an error message for the first flag that changes a key missing from the config, or an empty string."""
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
    """Returns the parser of --config, or None if the command does not define the flag."""
    parser = values["config"].parser if "config" in values else None
    return parser if isinstance(parser, RecipeParser) else None


def _keys(config: ConfigDict) -> Iterator[str]:
    """Yields the keys of the config and of all nested configs."""
    for key, value in config.items():
        yield key
        if isinstance(value, ConfigDict):
            yield from _keys(value)
