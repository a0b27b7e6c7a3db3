"""The second stage of `vitar_7b` alone: GRPO from any weights.

--config.model.pretrained=RUN/sft/model                     what `vitar_sft_7b` left, as ViTAR does
--config.model.pretrained=lingshu-medical-mllm/Lingshu-7B   without SFT, for the comparison
"""

from typing import Any

from ml_collections import ConfigDict

from configs import vitar_7b


def get_config() -> ConfigDict:
    config: Any = vitar_7b.get_config()
    config.schedule = ("grpo",)
    config.stages.grpo.start = ""
    del config.stages["sft"]
    return config
