"""Loading of image-text-to-text models: number types, quantisation, processors."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from hfcap import registry
from hfcap.captioners.adaptation.quantization import keep_layout, plain_compute_type
from hfcap.captioners.shared.pretrained import load_image_processor, loading_problem, whole_model
from hfcap.captioners.shared.tokenizers import load_tokenizer
from hfcap.errors import MissingPackageError, UserError, WorkError, shown
from hfcap.failures.hub import out_of_reach

MODEL_TYPES = frozenset(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - {"blip", "vision-encoder-decoder"}
"""What transformers calls image-text-to-text, without the types that have a family of their own."""

KEY = "model.pretrained"


_CODEBOOK = "it turns images into words of a codebook, so that there are no states of an image to keep"
_CROPS = "it reads an image as a whole and in crops, from two tensors"
_FLAT_PATCHES = "its processor hands on flattened patches instead of pixels"

REFUSED = {
    "apertus1p5": _CODEBOOK,
    "chameleon": _CODEBOOK,
    "cosmos3_edge": "its processor leaves out mm_token_type_ids, without which its own generate fails",
    "deepseek_ocr2": _CROPS,
    "deepseek_vl_hybrid": "it reads every image in two resolutions, from two tensors",
    "diffusion_gemma": "it writes blocks of words at once, so that no word follows from those before it",
    "emu3": _CODEBOOK,
    "evolla": "it reads proteins, not images",
    "fuyu": "it has no image encoder: its language model reads pixels",
    "got_ocr2": "it reads the text of documents, and its processor writes the prompt for that itself",
    "granite4_vision": "an image's features for several layers of its language model cannot be kept as one tensor",
    "idefics": "some of its layers read images by cross-attention, which hfcap has no file for",
    "instructblipvideo": "it reads films, not images",
    "kosmos-2.5": _FLAT_PATCHES,
    "llama4": "what it calls features of an image still has to be projected, which hfcap has no file for",
    "mistral4": "the class that transformers has for it reads no images",
    "ovis2": "it adds marks of an image's beginning and end to what it calls features of the image",
    "pi0": "it moves robots and writes no text",
    "pix2struct": _FLAT_PATCHES,
    "pp_formulanet": "it reads formulas and takes no prompt",
    "shieldgemma2": "it says whether an image is safe, and its processor writes the question itself",
    "step3p7": _CROPS,
    "t5gemma2": "an encoder reads image and prompt together, which hfcap has no file for",
    "udop": "it reads documents by the places of their words, which its processor asks for",
    "unlimited_ocr": _CROPS,
}
"""Type -> why hfcap does not caption with it; the documentation's table shows it, too (scripts/kinds_table.py)."""


def load_model(
    location: str,
    revision: str | None,
    trust_remote_code: bool,
    dtype: str | None,
    quantization: str | None,
    loader: Any = AutoModelForImageTextToText,
    model_types: Collection[str] = MODEL_TYPES,
) -> Any:
    """Load a whole model.

    Args:
        loader: the auto class that loads it.
        model_types: those that may be loaded, besides those that bring their code.
        dtype: float32, bfloat16 or float16; None = as the weights are stored.
        quantization: 4bit or 8bit (QLoRA, Dettmers et al. 2023, arXiv:2305.14314): frozen weights for LoRA.

    Raises:
        UserError: nothing to load there, or quantisation without bitsandbytes.
    """
    arguments: dict[str, Any] = {"dtype": "auto" if dtype is None else getattr(torch, dtype)}
    if quantization is not None:
        _require_quantization(quantization)
        arguments["quantization_config"] = quantization_config(quantization, dtype)
        arguments["device_map"] = {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}
    if trust_remote_code:
        arguments["trust_remote_code"] = True
    brought = _brought_type(location, revision, trust_remote_code, loader.__name__)
    served = {*model_types, brought} if brought else model_types
    model = whole_model(loader, location, revision, served, REFUSED, **arguments)
    keep_layout(model)
    if quantization is not None:
        # Layer norms in float32; everything frozen but the LoRA layers to come.
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model


def _brought_type(location: str, revision: str | None, trusted: bool, auto_class: str) -> str | None:
    """Return the type of a model whose class comes with it (Moondream and its like); None for those of transformers.

    Raises:
        UserError: its code does not say how it captions, or nobody has said that the code may run.
    """
    try:
        values, _ = PreTrainedConfig.get_config_dict(location, revision=revision)
    except (OSError, ValueError):
        return None  # loading says what is wrong
    if not isinstance(values, dict):
        return None
    brought, named = values.get("model_type"), values.get("auto_map")
    if not isinstance(brought, str) or not isinstance(named, dict) or brought in MODEL_TYPES:
        return None
    if any(
        brought in registry.load("captioners", name).REGISTERED.model_types for name in registry.names("captioners")
    ):
        return None  # another family's, whose code hfcap publishes
    if auto_class not in named:
        raise UserError(
            f"{KEY}: {location} is a model of type {shown(brought)} whose code comes with it, and its auto_map names "
            f"no {auto_class} (only {', '.join(map(str, named)) or 'nothing'}): hfcap cannot tell how it captions; "
            "choose another, or write a captioner family for it (docs/image_text_to_text.md)"
        )
    if not trusted:
        raise UserError(
            f"{KEY}: {location} is a model of type {shown(brought)} whose code comes with it; give --trust-remote-code "
            "(in a recipe model.trust_remote_code: true) if you trust its author"
        )
    return brought


def quantization_config(quantization: str, dtype: str | None) -> BitsAndBytesConfig:
    """Return QLoRA's settings: NF4 with doubly quantised constants, or LLM.int8; `dtype` is what 4 bits compute in."""
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype) if dtype else plain_compute_type(),
    )


def _require_quantization(quantization: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingPackageError(
            "bitsandbytes", f"model.quantization: {quantization}", ", or set it to null and model.dtype to bfloat16"
        )


def load_processor(location: str, revision: str | None, trust_remote_code: bool) -> Any:
    """Load the model's own processor, its tokenizer with a pad token.

    Raises:
        UserError: files are missing, or the processor needs a package that is not installed.
    """
    load_tokenizer(location, KEY, revision, trust_remote_code)
    image_processor = load_image_processor(location, KEY, revision, trust_remote_code)
    try:
        processor: Any = AutoProcessor.from_pretrained(location, revision=revision, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise UserError(
            f"{KEY}: the processor of {location} needs packages that are missing: {' '.join(str(error).split())[:160]} "
            "(SmolVLM and Qwen-VL also take films: pip install torchvision num2words)"
        ) from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        problem = f"{KEY}: no processor in {location}: {loading_problem(error)}"
        if out_of_reach(error):
            raise WorkError(problem) from error
        raise UserError(f"{problem}; save it there again") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise UserError(f"{KEY}: the processor of {location} lacks an image processor or a tokenizer; save it again")
    processor.image_processor = image_processor
    tokenizer = processor.tokenizer
    for name in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(name, None)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
    return processor


def pixel_limits(image_processor: Any) -> dict[str, str]:
    """Return how many pixels images have at least and at most, for hfcap.json; empty where there are no such limits."""
    size = getattr(image_processor, "size", None)
    found = {"min_pixels": getattr(size, "shortest_edge", None), "max_pixels": getattr(size, "longest_edge", None)}
    # Of other processors these are lengths of sides; those with patches that are merged count pixels.
    if not all(found.values()) or not hasattr(image_processor, "merge_size"):
        return {}
    return {name: str(value) for name, value in found.items()}


def limit_pixels(image_processor: Any, least: int | None, most: int | None) -> None:
    """Set how many pixels images have at least and at most, where the image processor keeps such limits.

    Raises:
        UserError: it has none, or the limits exclude one another.
    """
    given = {"shortest_edge": least, "longest_edge": most}
    if least is None and most is None:
        return
    known = {name: int(value) for name, value in zip(given, pixel_limits(image_processor).values(), strict=False)}
    if not known:
        key = "model.min_pixels" if least is not None else "model.max_pixels"
        raise UserError(
            f"{key}: {type(image_processor).__name__} has no limits of pixels; leave it out, or set model.image_size"
        )
    limits = {name: known[name] if value is None else value for name, value in given.items()}
    if limits["shortest_edge"] > limits["longest_edge"]:
        raise UserError(
            f"model.min_pixels: {limits['shortest_edge']:,} is more than model.max_pixels "
            f"({limits['longest_edge']:,}); lower the one or raise the other"
        )
    image_processor.size = type(image_processor.size)(**limits)
