"""The analytic counts against torch's counter, which watches the products that Hugging Face's module makes."""

from torch.utils.flop_counter import FlopCounterMode

from tests import tiny
from vitar_jax.models.config import ModelConfig
from vitar_jax.models.flops import BACKWARD, head_flops, text_flops, vision_flops

SIZE = (168, 112)  # 6 x 4 tokens, in windows of 2 x 2 without a gap
WINDOWS = 6


def counted(*, backward: bool) -> tuple[int, int, int, int]:
    """FLOPs that torch counts: vision tower, decoder, head; and those of the whole, the backward pass included."""
    theirs, _ = tiny.pretrained()
    processor = tiny.processor(WINDOWS)
    example = tiny.example("e", [tiny.noise(*SIZE), "Which texture is it?"], processor)
    inputs = tiny.hf_inputs(example.token_ids, [processor.look(tiny.noise(*SIZE))])
    with FlopCounterMode(display=False) as counter:
        logits = theirs(**inputs).logits
        if backward:
            logits.sum().backward()
    theirs.zero_grad()
    modules = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    vision, decoder, head = (
        next(flops for name, flops in modules.items() if name.endswith(suffix))
        for suffix in (".visual", ".language_model", ".lm_head")
    )
    return vision, decoder, head, counter.get_total_flops()


def test_forward_counts_are_torchs() -> None:
    config = ModelConfig.from_hf(tiny.hf_config().to_dict())
    tokens = tiny.example("e", [tiny.noise(*SIZE), "Which texture is it?"], tiny.processor(WINDOWS)).token_ids.size
    vision, decoder, head, total = counted(backward=False)
    assert vision_flops(config.vision, images=1, windows=WINDOWS, window_patches=tiny.WINDOW_PATCHES) == vision
    assert text_flops(config.text, rows=1, tokens=tokens) == decoder
    assert head_flops(config.text, tokens=tokens) == head
    assert vision + decoder + head == total


def test_a_backward_pass_is_two_forward_passes() -> None:
    """But for the patch embedding, whose input, the pixels, needs no gradient."""
    config = ModelConfig.from_hf(tiny.hf_config().to_dict()).vision
    *_, forward = counted(backward=False)
    *_, total = counted(backward=True)
    patches = WINDOWS * tiny.WINDOW_PATCHES
    assert (1 + BACKWARD) * forward - total == 2 * patches * config.patch_width * config.hidden_size
