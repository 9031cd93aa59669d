"""Options of the base model: which one, from where, in what precision."""

from __future__ import annotations

from simplewan.options.declare import Group, option

_QUANTISED = "a quantised base model"
QUANTISED_PRECISIONS = dict.fromkeys(
    (
        "int8-quanto",
        "int4-quanto",
        "int2-quanto",
        "fp8-quanto",
        "fp8uz-quanto",
        "int8-torchao",
        "fp8-torchao",
        "nf4-bnb",
        "fp8-scaled",
    ),
    _QUANTISED,
)
_TORCH = "attention runs through torch's scaled_dot_product_attention, which picks its fastest exact kernel"
ATTENTIONS = dict.fromkeys(
    (
        "xformers",
        "sageattention",
        "sageattention-int8-fp16-triton",
        "sageattention-int8-fp16-cuda",
        "sageattention-int8-fp8-cuda",
        "flash-attn",
        "flash-attn-2",
        "flash-attn-3",
        "flash-attn-3-varlen",
        "flex",
        "cudnn",
        "native-efficient",
        "native-flash",
        "native-math",
        "sla",
    ),
    "another attention kernel",
)
_SOURCE = "a hub repository or a local folder in diffusers' layout"


class ModelOptions(Group):
    model_type: str = option(
        "lora",
        choices=("lora", "full"),
        help="Train a small adapter beside the model (lora), or all its weights (full).",
    )
    model_flavour: str | None = option(
        None, help="Which Wan model, and for Wan 2.2 A14B which expert; none takes t2v-480p-1.3b-2.1."
    )
    pretrained_model_name_or_path: str | None = option(
        None, help=f"Base model: {_SOURCE}; none takes the flavour's repository."
    )
    pretrained_transformer_model_name_or_path: str | None = option(
        None,
        help=f"Transformer (high noise) from elsewhere: {_SOURCE}, or a single .safetensors file; none takes the base.",
    )
    pretrained_transformer_subfolder: str | None = option(
        None, help='Subfolder of the transformer; "none" when the files lie at the top; none takes the expert\'s own.'
    )
    pretrained_transformer_2_model_name_or_path: str | None = option(
        None, help="The same for transformer_2, the low-noise expert of Wan 2.2 A14B."
    )
    pretrained_transformer_2_subfolder: str | None = option(
        None, help="Subfolder of transformer_2; as pretrained_transformer_subfolder."
    )
    pretrained_vae_model_name_or_path: str | None = option(
        None, help=f"VAE from elsewhere: {_SOURCE}, or a single file; none takes the base."
    )
    pretrained_t5_model_name_or_path: str | None = option(
        None, help=f"Text encoder (UMT5) from elsewhere: {_SOURCE}, or a single file; none takes the base."
    )
    pretrained_tokenizer_model_name_or_path: str | None = option(
        None, help="Tokenizer from elsewhere; none takes it from beside the text encoder."
    )
    revision: str | None = option(None, help="Branch, tag or commit of the hub repository; none takes its main branch.")
    variant: str | None = option(None, help="Variant of the weight files, such as fp16; none takes the plain files.")
    base_model_precision: str = option(
        "no_change",
        choices=("no_change",),
        later_choices=QUANTISED_PRECISIONS,
        help="Hold the frozen base in fewer bits to save memory.",
    )
    base_model_default_dtype: str | None = option(
        None,
        choices=("bf16", "fp16", "fp32"),
        help="Number format of the frozen base weights; none takes the one of mixed_precision.",
    )
    text_encoder_1_precision: str = option(
        "no_change",
        choices=("no_change",),
        later_choices=dict.fromkeys(QUANTISED_PRECISIONS, "a quantised text encoder"),
        help="Hold the text encoder in fewer bits while prompts are encoded.",
    )
    text_encoder_2_precision: str = option(
        "no_change",
        choices=("no_change",),
        later_choices=dict.fromkeys(QUANTISED_PRECISIONS, "a quantised text encoder"),
        comfort="Wan has one text encoder (UMT5), so there is no second one to quantise",
        restart_safe=True,
        help="Of no effect: Wan has no second text encoder. Kept for old files.",
    )
    quantize_via: str = option(
        "cpu",
        choices=("cpu", "accelerator", "pipeline"),
        applies="base_model_precision",
        restart_safe=True,
        help="Where the base is quantised: cpu needs less GPU memory, accelerator is faster.",
    )
    attention_mechanism: str = option(
        "diffusers",
        choices=("diffusers",),
        later_choices=ATTENTIONS,
        comfort=_TORCH,
        help="The attention kernel; diffusers is torch's own.",
    )
    dynamo_backend: str = option(
        "no",
        choices=("no",),
        later_choices={"inductor": "torch.compile", "eager": "torch.compile", "aot_eager": "torch.compile"},
        comfort="the model runs uncompiled, with the same result",
        help="Compile the model with torch.compile.",
    )
    wan_force_2_1_time_embedding: bool = option(
        False,
        help="TI2V: embed one timestep a sample, as Wan 2.1 does, though a first frame that is given is at timestep 0.",
    )
    gradient_checkpointing: bool = option(
        False, help="Recompute each block in the backward pass: far less memory, about a third more time."
    )
    gradient_checkpointing_interval: int = option(
        1,
        minimum=1,
        unit="blocks",
        later="checkpointing only some of the blocks",
        applies="gradient_checkpointing",
        help="Checkpoint every n-th block only.",
    )
    vae_enable_tiling: bool = option(
        False, later="encoding and decoding in tiles", help="Run the VAE tile by tile to save memory."
    )
