"""The quickstart, shortened: checks that its machinery works, in minutes, and learns nothing worth a number."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    config = quickstart.get_config()
    for name, steps in (("warmup", 20), ("sft", 90), ("grpo", 6), ("one_look", 20)):
        stage = config.stages[name]
        stage.steps = steps
        stage.batch_size = min(stage.batch_size, 32)
        stage.checkpoint_every = 40
        stage.log_every = max(1, steps // 10)
        stage.optimizer.warmup_steps = 5
    config.stages.sft.probe_every = 30
    config.stages.sft.probe_samples = 16
    config.stages.grpo.probe_every = 0
    config.rollout.slots = 64
    config.evaluation_samples = 64
    return config
