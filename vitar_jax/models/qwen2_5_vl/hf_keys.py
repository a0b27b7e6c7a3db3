"""The keys of `transformers.Qwen2_5_VLConfig`, in the flat form of the published files and in the nested form of later ones."""

from vitar_jax.models.hf_keys import BASE_FIXED, BASE_IGNORED, Keys

ROPE = Keys(
    read=("mrope_section", "rope_theta"),
    fixed={
        "rope_type": ("default", "mrope"),
        "type": ("default", "mrope"),  # the spelling in the published files
        "partial_rotary_factor": (1,),
    },
    ignored={
        "read by other types of rotary embedding alone": (
            *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate"),
            *("short_factor", "long_factor", "low_freq_factor", "high_freq_factor", "mscale", "mscale_all_dim"),
        ),
    },
)

VISION_ROPE = Keys(
    read=("rope_theta",),
    fixed={"rope_type": ("default", "axial"), "type": ("default", "axial"), "partial_rotary_factor": (1,)},
    ignored={},
)

TEXT = Keys(
    read=(
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "rms_norm_eps"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings"),
        *("rope_parameters", "rope_scaling", "rope_theta"),
        *("bos_token_id", "eos_token_id", "pad_token_id"),
    ),
    fixed={
        "model_type": ("qwen2_5_vl_text", "qwen2_5_vl"),
        "hidden_act": ("silu", "swish"),  # two names of one function
        "layer_types": ("full_attention",),
        "use_sliding_window": (False,),
        # Not in transformers' class, but in other decoders', whose files may claim this model_type.
        "attention_bias": (True,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1,),
        **BASE_FIXED,
    },
    ignored={
        "read with use_sliding_window alone": ("max_window_layers", "sliding_window"),
        "sizes of random weights": ("initializer_range",),
        "training here has no dropout": ("attention_dropout",),
        **BASE_IGNORED,
    },
)

VISION = Keys(
    read=(
        *("depth", "hidden_size", "intermediate_size", "num_heads", "in_channels", "out_hidden_size", "fullatt_block_indexes"),
        *("patch_size", "temporal_patch_size", "spatial_merge_size", "window_size", "tokens_per_second"),
        *("in_chans", "num_attention_heads", "num_hidden_layers"),  # other spellings
        *("rope_parameters", "rope_scaling", "rope_theta"),
    ),
    fixed={
        "model_type": ("qwen2_5_vl_vision", "qwen2_5_vl"),
        "hidden_act": ("silu", "swish"),
        "partial_rotary_factor": (1,),
        **BASE_FIXED,
    },
    ignored={
        "equals patch_size, and nothing reads it": ("spatial_patch_size",),
        "sizes of random weights": ("initializer_range",),
        **BASE_IGNORED,
    },
)

TOP = Keys(
    read=(
        *("model_type", "text_config", "vision_config", "tie_word_embeddings"),
        *("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
    ),
    fixed=BASE_FIXED,
    ignored={"nothing reads it": ("vision_token_id",), **BASE_IGNORED},
)
