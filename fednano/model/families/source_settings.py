"""What several families read in the same way of a checkpoint's settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fednano.errors import ModelInvalid
from fednano.model.cutting.cut import Checkpoint, said_in
from fednano.model.families.chat import read_tokenizer
from fednano.model.families.picture import PictureConfig
from fednano.model.families.vit import VitConfig

# As OpenAI's CLIP was trained.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
MIDDLE = (0.5, 0.5, 0.5)


class VisionSettings(BaseModel):
    """vision_config, with what transformers takes for CLIP where something is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: str = "clip_vision_model"
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    qkv_bias: bool = True


# What transformers takes instead of CLIP's, where a vision_config of the type leaves it out.
_SIGLIP = {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_EVA = {
    "hidden_size": 1408,
    "intermediate_size": 6144,
    "num_hidden_layers": 39,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
}


_SMOLVLM = {
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}


def vision_settings(checkpoint: Checkpoint, default: Mapping[str, Any]) -> VisionSettings:
    """``default`` is the family's vision_config, taken whole where the checkpoint has none."""
    said = said_in(checkpoint.config.get("vision_config", default))
    model_type = said.get("model_type", default["model_type"])
    types = {
        "siglip_vision_model": _SIGLIP,
        "blip_2_vision_model": _EVA,
        "smolvlm_vision": _SMOLVLM,
        "idefics3_vision": _SMOLVLM,
    }
    others = types.get(model_type, {})
    try:
        settings = VisionSettings.model_validate({**others, **said, "model_type": model_type})
    except ValidationError as error:
        message = f"{checkpoint.name}: config.json: vision_config: {error.errors(include_input=False)[0]['msg']}"
        raise ModelInvalid(message, file="config.json") from error
    if settings.num_channels != 3:
        raise ModelInvalid(f"{checkpoint.name}: {settings.num_channels} colour channels, where 3 are supported")
    return settings


def clip_tower(settings: VisionSettings, feature_layers: Sequence[int], *, keeps_class_token: bool) -> VitConfig:
    return VitConfig(
        **_sizes(settings),
        feature_layers=tuple(feature_layers),
        class_token=True,
        keeps_class_token=keeps_class_token,
        patch_bias=False,
        first_norm=True,
    )


def siglip_tower(settings: VisionSettings, feature_layers: Sequence[int], *, final_norm: bool) -> VitConfig:
    return VitConfig(
        **_sizes(settings),
        feature_layers=tuple(feature_layers),
        class_token=False,
        patch_bias=True,
        final_norm=final_norm,
    )


def eva_tower(settings: VisionSettings) -> VitConfig:
    """As BLIP-2 has it: all layers, all tokens, normalised."""
    return VitConfig(
        **_sizes(settings),
        feature_layers=(settings.num_hidden_layers,),
        class_token=True,
        keeps_class_token=True,
        patch_bias=True,
        final_norm=True,
        fused_qkv=True,
        qkv_bias=settings.qkv_bias,
    )


def _sizes(settings: VisionSettings) -> dict[str, Any]:
    return {
        "side_px": settings.image_size,
        "patch_px": settings.patch_size,
        "width": settings.hidden_size,
        "mlp_width": settings.intermediate_size,
        "head_count": settings.num_attention_heads,
        "activation": settings.hidden_act,
        "norm_eps": settings.layer_norm_eps,
    }


def picture_config(
    checkpoint: Checkpoint, side_px: int, *, mean: Sequence[float], std: Sequence[float]
) -> PictureConfig:
    """As preprocessor_config.json says, or processor_config.json; CLIP's or the given figures where none does."""
    said = checkpoint.json("preprocessor_config.json") or checkpoint.json("processor_config.json").get(
        "image_processor", {}
    )
    size = said.get("size", {})
    shorter = size.get("shortest_edge") if isinstance(size, dict) else size
    crops = isinstance(shorter, int) and said.get("do_center_crop", True)
    resize_px: int = shorter if isinstance(shorter, int) and crops else side_px
    if resize_px < side_px:
        raise ModelInvalid(f"{checkpoint.name}: pictures of {shorter} px are cut to {side_px} px, which is more")
    return PictureConfig(
        side_px=side_px,
        resize_px=resize_px,
        resize="shorter" if crops else "both",
        resample=said.get("resample", 3),
        mean=said.get("image_mean", mean),
        std=said.get("image_std", std),
    )


def language_config(checkpoint: Checkpoint, *, model_type: str, architectures: Mapping[str, str]) -> dict[str, Any]:
    """config.json of the server half: the checkpoint's text_config, which transformers completes as it did there."""
    said = dict(checkpoint.config.get("text_config", {}))
    said.setdefault("model_type", model_type)
    if said["model_type"] not in architectures:
        known = ", ".join(sorted(architectures))
        message = f"{checkpoint.name}: a language model of type {said['model_type']}, which is not one of: {known}"
        raise ModelInvalid(message, file="config.json")
    said["architectures"] = [architectures[said["model_type"]]]
    tied = said.get("tie_word_embeddings", checkpoint.config.get("tie_word_embeddings", False))
    return said | {"tie_word_embeddings": bool(tied)}


def special_token(checkpoint: Checkpoint, kind: str) -> str:
    """``bos_token`` or ``eos_token`` as the tokenizer's settings name it, or the model's its id; empty: none does."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        said = checkpoint.json(name).get(kind)
        content: str | None = said.get("content", "") if isinstance(said, dict) else said
        if content:
            return content
    language = checkpoint.config.get("text_config", {})
    for settings in (language, checkpoint.json("generation_config.json"), checkpoint.config):
        token = _token_by_id(checkpoint, settings.get(f"{kind}_id"))
        if token:
            return token
    return ""


def token_of(checkpoint: Checkpoint, token_id: int, what: str) -> str:
    token = _token_by_id(checkpoint, token_id)
    if not token:
        raise ModelInvalid(f"{checkpoint.name}: tokenizer.json has no token {token_id}, which config.json gives {what}")
    return token


def _token_by_id(checkpoint: Checkpoint, token_id: int | Sequence[int] | None) -> str:
    first = token_id[0] if isinstance(token_id, Sequence) and token_id else token_id
    if not isinstance(first, int):
        return ""
    token: str | None = read_tokenizer(checkpoint.need("tokenizer.json")).id_to_token(first)
    return token or ""


def template_of(checkpoint: Checkpoint, default: str) -> str:
    """The checkpoint's chat template, wherever it keeps it, or ``default``."""
    found = checkpoint.files.read("chat_template.jinja")
    if found is not None:
        return found.decode()
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        said = checkpoint.json(name).get("chat_template")
        if isinstance(said, str):
            return said
    return default
