"""Which tokens end and pad what a model writes: `generation_config.json` and three keys of `config.json`."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from vitar_jax.errors import CheckpointError

GENERATION_FILE = "generation_config.json"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclasses.dataclass(frozen=True)
class Generation:
    """The settings of transformers' `generate` in a checkpoint, which go out as they came in.

    Attributes:
      ids: Those of `bos_token_id`, `eos_token_id` and `pad_token_id` that `config.json` has. An eos may be a list.
      file: Content of `generation_config.json`, or None if the file does not exist.
    """

    ids: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"bos_token_id": None, "eos_token_id": None})
    file: Mapping[str, Any] | None = None

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> "Generation":
        """Reads the dictionaries in `config.json` and `generation_config.json`. The ids may be in a nested `text_config`.

        Raises:
          CheckpointError: If a value is not a token's id, nor a list of them for an eos.
        """
        nested = hf.get("text_config")
        sections = (hf, nested if isinstance(nested, dict) else {})
        ids = {name: section[name] for section in sections for name in _IDS if name in section}
        for where, values in (("", ids), (f"{GENERATION_FILE}: ", file or {})):
            for name in _IDS:
                several = name == "eos_token_id" and isinstance(values.get(name), list)
                for value in values[name] if several else [values.get(name)]:
                    if value is not None and (type(value) is not int or value < 0):
                        raise CheckpointError(f"{where}{name}: got {value!r}, expected a token's id")
        return cls(ids, file)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end what `generate` writes. As in transformers, the file goes before `config.json`."""
        eos = (self.ids if self.file is None else self.file).get("eos_token_id")
        return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)

    def stopping_at(self, stop_ids: Iterable[int]) -> "Generation":
        """Returns settings that end with these tokens, also in a file. Returns the same settings if they already do."""
        stops = list(dict.fromkeys(stop_ids))
        if set(stops) == set(self.stop_ids):
            return self
        eos = {"eos_token_id": stops[0] if len(stops) == 1 else stops}
        others = {name: value for name, value in self.ids.items() if value is not None} if self.file is None else self.file
        return Generation({**self.ids, **eos}, {**others, **eos})

    def for_config(self) -> dict[str, Any]:
        """Returns the keys of `config.json`. The file's values take the place of values that `config.json` does not have."""
        missing = {name: value for name, value in (self.file or {}).items() if name in _IDS and self.ids.get(name) is None}
        return {**self.ids, **missing}
