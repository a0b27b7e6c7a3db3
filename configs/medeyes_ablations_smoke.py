"""A shortened `medeyes_ablations` of two arms, as `medeyes_quickstart_smoke`.

  bash launch/medeyes_ablations.sh --config=configs/medeyes_ablations_smoke.py --workdir=runs/medeyes_ablations_smoke
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

_BASE, _SMOKE = (
    runpy.run_path(str(Path(__file__).with_name(name))) for name in ("medeyes_ablations.py", "medeyes_quickstart_smoke.py")
)


def get_config() -> ConfigDict:
    return _SMOKE["shorten"](_BASE["get_config"](("gazes_2", "replay_newest")))
