"""Tiny configurations of the families of transformers, with random weights."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tests.survey.measure import Case, NotComparedError

SMALLER: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "embedding_size", "emb_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_block_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 40),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "hidden_dim"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "qk_nope_head_dim", "v_head_dim", "qk_rope_head_dim", "rotary_dim"), 8),
    "qk_head_dim": 16,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("vocab_size", "text_vocab_size"), 99),
    "image_size": 32,
    "patch_size": 8,
    "attention_window": 4,
    "block_size": 4,
    "n_group": 1,
    "topk_group": 1,
    "type_vocab_size": 2,
    "ssm_state_size": 4,
    "state_size": 4,
    "first_k_dense_replace": 1,
}
# Outputs that later questions would not need, and dropout of layers by chance.
OFF = {"use_cache": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "sep_token_id", "cls_token_id")
TEXT = (
    "albert arcee bamba bart bert bert-generation big_bird biogpt bitnet blenderbot blenderbot-small "
    "bloom camembert canine codegen cohere cohere2 convbert cpmant ctrl dbrx deberta deberta-v2 "
    "deepseek_v2 deepseek_v3 diffllama distilbert doge dots1 dpr electra ernie ernie4_5 esm exaone4 "
    "falcon falcon_h1 falcon_mamba flaubert fnet fsmt funnel gemma gemma2 gemma3_text glm glm4 glm4_moe "
    "gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe granitemoehybrid "
    "helium hunyuan_v1_dense ibert jamba jetmoe led lfm2 llama longformer longt5 m2m_100 mamba mamba2 "
    "marian mbart megatron-bert minicpm3 minimax ministral mistral mixtral mobilebert modernbert mpnet "
    "mpt mra mt5 mvp nemotron nezha nystromformer olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt "
    "pegasus pegasus_x persimmon phi phi3 phimoe plbart prophetnet qwen2 qwen2_moe qwen3 qwen3_moe "
    "qwen3_next recurrent_gemma reformer rembert roberta roberta-prelayernorm roc_bert roformer rwkv "
    "seed_oss smollm3 solar squeezebert stablelm starcoder2 switch_transformers t5 umt5 xglm xlm "
    "xlm-roberta xlm-roberta-xl xlnet xlstm xmod yoso zamba zamba2 "
)
VISION = (
    "beit bit convnext convnextv2 cvt data2vec-vision deit dinov2 dinov3_vit dpt efficientnet focalnet "
    "glpn hiera ijepa imagegpt levit mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pvt "
    "pvt_v2 regnet resnet segformer swiftformer swin swin2sr swinv2 textnet timesformer upernet van vit "
    "vit_mae vit_msn vitdet videomae vivit yolos "
)
AUDIO = (
    "audio-spectrogram-transformer data2vec-audio encodec dac hubert mimi seamless_m4t sew sew-d "
    "speech_to_text speecht5 unispeech unispeech-sat univnet wav2vec2 wav2vec2-bert wav2vec2-conformer "
    "wavlm whisper "
)


def cases() -> Iterator[Case]:
    """One case per family."""
    for group, names in (("text", TEXT), ("vision", VISION), ("audio", AUDIO)):
        for name in names.split():
            yield Case(f"transformers, {group}", name, functools.partial(build, name, group), call)


def call(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    return model(**inputs)


def build(name: str, group: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A tiny model of one family, and inputs for it.

    Raises:
        NotComparedError: the installed version has no such family.
    """
    import transformers

    if name not in transformers.CONFIG_MAPPING:
        raise NotComparedError(f"transformers {transformers.__version__} has no {name}")
    config = transformers.CONFIG_MAPPING[name]()
    shrink(config)
    for key, value in CONSISTENT.get(name, {}).items():
        setattr(config, key, value)
    config._experts_implementation = "eager"  # the grouped kernel has no float64
    model = transformers.AutoModel.from_config(config, attn_implementation="eager" if name in EAGER else None)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model, inputs_for(model, group)


EAGER = ("gpt_oss",)
# Sizes that must fit each other.
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_d_state": 8}
_LATENT = {"num_key_value_heads": 4, "head_dim": 8}
CONSISTENT: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "granitemoehybrid": _MAMBA,
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 8},
    "zamba2": {"mamba_headdim": 8, "n_mamba_heads": 8, "mamba_expand": 2, "mamba_ngroups": 1, "mamba_d_state": 8},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "minicpm3": _LATENT,
    "esm": {"vocab_size": 99, "pad_token_id": 1, "mask_token_id": 2},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "dots1": {"head_dim": 8},
}


def shrink(config: Any) -> None:
    """Make a configuration and those inside it small."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            shrink(value)
        elif name in OFF:
            set_quietly(config, name, OFF[name])
        elif name in SMALLER and isinstance(value, int) and not isinstance(value, bool):
            set_quietly(config, name, min(value, SMALLER[name]))
        elif name in TOKENS and isinstance(value, int):
            set_quietly(config, name, min(value, 2))
        elif name == "layer_types" and isinstance(value, list):
            set_quietly(config, name, [value[0], value[-1]])
        elif name in ("depths", "num_blocks", "layer_depths") and isinstance(value, (list, tuple)):
            set_quietly(config, name, [1] * len(value))
        elif name == "rope_parameters" and isinstance(value, dict) and value.get("rope_type") in ("yarn", "longrope"):
            set_quietly(config, name, {"rope_type": "default", "rope_theta": 10000.0})
        elif "drop" in name and isinstance(value, float):
            set_quietly(config, name, 0.0)


def set_quietly(config: Any, name: str, value: Any) -> None:
    try:
        setattr(config, name, value)
    except (AttributeError, NotImplementedError, ValueError):
        return


def inputs_for(model: nn.Module, group: str) -> dict[str, torch.Tensor]:
    """Random inputs under the name that the model wants."""
    name, config = getattr(model, "main_input_name", "input_ids"), model.config
    if name == "input_ids" or group == "text":
        inputs = {"input_ids": torch.randint(3, 90, (2, 16))}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = torch.randint(3, 90, (2, 8))
        return inputs
    if name == "pixel_values":
        size = getattr(config, "image_size", 64)
        size = size if isinstance(size, int) else 64
        return {name: torch.randn(2, getattr(config, "num_channels", 3), size, size, dtype=torch.float64)}
    if name == "input_features":
        features = getattr(config, "num_mel_bins", None) or getattr(config, "feature_projection_input_dim", 80)
        length = 2 * getattr(config, "max_source_positions", 32)
        shape = (2, features, length) if config.model_type == "whisper" else (2, 32, features)
        inputs = {name: torch.randn(shape, dtype=torch.float64)}
        if getattr(config, "is_encoder_decoder", False):
            inputs["decoder_input_ids"] = torch.randint(3, 90, (2, 8))
        return inputs
    if config.model_type == "audio-spectrogram-transformer":
        return {name: torch.randn(2, config.max_length, config.num_mel_bins, dtype=torch.float64)}
    return {name: torch.randn(2, 1600, dtype=torch.float64)}
