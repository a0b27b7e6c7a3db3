"""The keys of `transformers.Qwen3VLConfig`, whose files have always been nested."""

from vitar_jax.models.hf_keys import BASE_FIXED, BASE_IGNORED, TOKEN_IDS, Keys

ROPE = Keys(
    read=("mrope_section", "rope_theta"),
    fixed={
        "rope_type": ("default", "mrope"),
        "type": ("default", "mrope"),
        "mrope_interleaved": (True,),
        "partial_rotary_factor": (1,),
    },
    ignored={},
)

VISION_ROPE = Keys(
    read=("rope_theta",),
    fixed={"rope_type": ("default", "axial"), "type": ("default", "axial"), "partial_rotary_factor": (1,)},
    ignored={},
)

TEXT = Keys(
    read=(
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "rms_norm_eps"),
        *("num_attention_heads", "num_key_value_heads", "head_dim"),
        *("rope_parameters", "rope_scaling", "rope_theta"),
    ),
    fixed={
        "model_type": ("qwen3_vl_text", "qwen3_vl"),
        "hidden_act": ("silu", "swish"),  # two names of one function
        "attention_bias": (False,),
        # Not in transformers' class, but in other decoders', whose files may claim this model_type.
        "layer_types": ("full_attention",),
        "use_sliding_window": (False,),
        "mlp_bias": (False,),
        "partial_rotary_factor": (1,),
        **BASE_FIXED,
    },
    ignored={
        "the key outside text_config counts": ("tie_word_embeddings",),
        "generation_config.json counts": ("bos_token_id", "eos_token_id", "pad_token_id"),
        "sizes of random weights": ("initializer_range",),
        "training here has no dropout": ("attention_dropout",),
        **BASE_IGNORED,
    },
)

VISION = Keys(
    read=(
        *("depth", "hidden_size", "intermediate_size", "num_heads", "in_channels", "out_hidden_size"),
        *("patch_size", "temporal_patch_size", "spatial_merge_size", "num_position_embeddings", "deepstack_visual_indexes"),
        *("num_attention_heads", "num_hidden_layers"),  # other spellings
        *("rope_parameters", "rope_scaling", "rope_theta"),
    ),
    fixed={
        "model_type": ("qwen3_vl_vision", "qwen3_vl"),
        "hidden_act": ("gelu_pytorch_tanh",),
        "partial_rotary_factor": (1,),
        **BASE_FIXED,
    },
    ignored={"sizes of random weights": ("initializer_range",), **BASE_IGNORED},
)

TOP = Keys(
    read=("model_type", "text_config", "vision_config", "tie_word_embeddings", *TOKEN_IDS),
    fixed=BASE_FIXED,
    ignored=BASE_IGNORED,
)
