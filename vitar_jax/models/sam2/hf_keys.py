"""The keys of `transformers.Sam2Config`, and of `Sam2VideoConfig`, whose files also contain the image model."""

from vitar_jax.models.hf_keys import BASE_FIXED, BASE_IGNORED, Keys

_RANDOM = {"sizes of random weights": ("initializer_range",)}

TRUNK = Keys(
    read=(
        *("embed_dim_per_stage", "num_attention_heads_per_stage", "blocks_per_stage", "window_size_per_stage"),
        *("global_attention_blocks", "window_positional_embedding_background_size", "mlp_ratio", "image_size"),
    ),
    fixed={
        "model_type": ("sam2_hiera_det_model",),
        "num_channels": (3,),
        "patch_kernel_size": (7,),
        "patch_stride": (4,),
        "patch_padding": (3,),
        "query_stride": (2,),
        "num_query_pool_stages": (3,),
        "hidden_act": ("gelu",),
        "layer_norm_eps": (1e-6,),
        **BASE_FIXED,
    },
    ignored={"the first of the widths and heads per stage": ("hidden_size", "num_attention_heads"), **_RANDOM, **BASE_IGNORED},
)

VISION = Keys(
    read=("backbone_config", "backbone_channel_list", "backbone_feature_sizes", "fpn_hidden_size"),
    fixed={
        "model_type": ("sam2_vision_model",),
        "fpn_kernel_size": (1,),
        "fpn_stride": (1,),
        "fpn_padding": (0,),
        "num_feature_levels": (3,),
        **BASE_FIXED,
    },
    ignored={
        "read as a whole": ("fpn_top_down_levels",),
        "the neck has neither": ("hidden_act", "layer_norm_eps"),
        **_RANDOM,
        **BASE_IGNORED,
    },
)

PROMPT = Keys(
    read=("hidden_size", "image_size", "mask_input_channels"),
    fixed={
        "model_type": ("sam2_prompt_encoder", "sam2_video_prompt_encoder"),
        "patch_size": (16,),
        "num_point_embeddings": (4,),
        "layer_norm_eps": (1e-6,),
        **BASE_FIXED,
    },
    ignored={
        "masks are no prompts here": ("hidden_act",),
        "sizes of random weights": ("scale", "initializer_range"),
        **BASE_IGNORED,
    },
)

DECODER = Keys(
    read=("hidden_size", "mlp_dim", "num_attention_heads", "attention_downsample_rate", "iou_head_hidden_dim"),
    fixed={
        "model_type": ("sam2_mask_decoder", "sam2_video_mask_decoder"),
        "num_hidden_layers": (2,),
        "num_multimask_outputs": (3,),
        "iou_head_depth": (3,),
        **BASE_FIXED,
    },
    ignored={
        "the mask of highest predicted IoU is taken": (
            *("dynamic_multimask_via_stability", "dynamic_multimask_stability_delta", "dynamic_multimask_stability_thresh"),
        ),
        "transformers' decoder ignores it": ("hidden_act",),
        **_RANDOM,
        **BASE_IGNORED,
    },
)

TOP = Keys(
    read=("vision_config", "prompt_encoder_config", "mask_decoder_config"),
    fixed={"model_type": ("sam2", "sam2_video"), **BASE_FIXED},
    ignored={**_RANDOM, "the embeddings are the model's own": ("tie_word_embeddings",), **BASE_IGNORED},
)
