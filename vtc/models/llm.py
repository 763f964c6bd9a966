"""The language model by itself: its tokenizer, its attention and norm as a CPU likes them, any size of it.

transformers' Qwen2 (the architecture of Qwen1.5, which the paper uses) from tiny to real sizes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

from vtc import InputError, data
from vtc.models import chat
from vtc.models.prompt import block_mask
from vtc.shapes import LLMShape

PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"
LEAN = "lean"  # the name of this file's attention among transformers' implementations


def make_tokenizer(words: tuple[str, ...] = data.WORDS) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one token a word, split at spaces; unknown words become one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {w: i for i, w in enumerate(dict.fromkeys((PAD, UNKNOWN, END, *words)))}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token=PAD, unk_token=UNKNOWN, eos_token=END)


def tokenizer_of(size: LLMShape, words: tuple[str, ...] = data.WORDS) -> PreTrainedTokenizerFast:
    """What the LLM of that size reads: its checkpoint's own tokens or, without one, these words."""
    if not size.checkpoint:
        return make_tokenizer(words)
    return chat.ready(_loaded(AutoTokenizer, size.checkpoint))


def shape_of(checkpoint: str) -> LLMShape:
    """The shape of an LLM by hub id, folder or GGUF file; InputError where its configuration is no LLM's."""
    config = _loaded(AutoConfig, checkpoint).get_text_config()
    try:
        d, heads = config.hidden_size, config.num_attention_heads
        return LLMShape(
            Path(checkpoint).name, config.num_hidden_layers, d,
            d_ff=getattr(config, "intermediate_size", None) or 4 * d, heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None), vocab=config.vocab_size,
            tied=bool(config.tie_word_embeddings), bias=config.model_type == "qwen2", checkpoint=checkpoint,
        )  # fmt: skip
    except AttributeError as e:
        problem = f"LLM {checkpoint!r}: its configuration is no LLM's ({e})"
        raise InputError(f"{problem}; give a folder of AutoModelForCausalLM") from None


_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def _loaded(what: type, checkpoint: str, **options: object):
    """`what.from_pretrained`; a file of weights must be safetensors or GGUF, never a pickle."""
    file = Path(checkpoint)
    if file.suffix == ".gguf":
        checkpoint, options["gguf_file"] = str(file.parent), file.name
    try:
        return what.from_pretrained(checkpoint, **options)
    except _UNREADABLE as e:
        problem = f"LLM {str(file)!r} could not be loaded ({str(e).strip().splitlines()[0]})"
        raise InputError(
            f"{problem}; give a hub id, a folder with model.safetensors, or a GGUF file"
        ) from None


def lean(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **how: object
):
    """Attention as three products, softmax in their dtype: (b, heads, t, d_head) -> (b, t, heads, d_head).

    On a CPU the fused attention's backward pass takes three to five times as long (heads 16 to 64 wide, 116
    tokens), and transformers' own "eager" a sixth of a whole training step more, for its softmax in float32.
    Elsewhere it is torch's fused attention.
    """
    if q.device.type != "cpu":
        return sdpa_attention_forward(module, q, k, v, mask, scaling=scaling, **how)
    if k.shape[1] < q.shape[1]:  # grouped queries: several heads share a key and a value
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    weights = (q * scaling) @ k.transpose(2, 3)  # (b, heads, t, t)
    if mask is not None:
        weights += mask  # in place: no product's gradient needs what it gave
    return (weights.softmax(-1) @ v).transpose(1, 2), None


def _finite(**kwargs: object) -> Tensor | None:
    """transformers' additive mask, with -1e4 for what is hidden: an all-hidden row (padding) stays finite."""
    mask = eager_mask(**kwargs)
    return None if mask is None else mask.clamp_min(-1e4)


AttentionInterface.register(LEAN, lean)
AttentionMaskInterface.register(LEAN, _finite)


class Norm(nn.Module):
    """Root-mean-square norm x / rms(x) * weight over the last axis, in x's precision, its mean in float32.

    Written with its gradient: on a CPU torch's own takes seven passes over x and works in float32 wherever
    the weight does; with it a training step at V = 144 takes 1.15 to 1.3 times as long. Elsewhere torch's.
    """

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return torch.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
        return _RMS.apply(x, self.weight, self.eps)


class _RMS(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = (length.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)  # (..., 1)
        normed = x * inverse
        ctx.save_for_backward(normed, weight, inverse)
        return normed * weight.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, weight, inverse = ctx.saved_tensors
        to_weight = (grad * normed).flatten(0, -2).sum(0, dtype=weight.dtype)
        inner = grad * weight.to(grad.dtype)
        along = (inner * normed).mean(-1, keepdim=True)  # the part that would change the length
        return inner.addcmul_(normed, along, value=-1).mul_(inverse), to_weight, None


def make_llm(size: LLMShape, vocabulary: int) -> PreTrainedModel:
    """The LLM of that size: its checkpoint's weights, or fresh ones with attention written out."""
    if size.checkpoint:
        return _checkpoint(size.checkpoint)
    return empty_llm(llm_config(size, vocabulary), LEAN)


def _checkpoint(name: str) -> PreTrainedModel:
    """The LLM that people gave; InputError where it lacks weights or reads a prompt otherwise than ours."""
    how = {"attn_implementation": "sdpa", "use_safetensors": True, "output_loading_info": True}
    llm, notes = _loaded(AutoModelForCausalLM, name, **how)
    if missing := sorted(notes["missing_keys"]):
        raise InputError(f"LLM {name!r} has no weights {missing[0]}: is the folder whole?")
    llm.config.__dict__.pop("quantization_config", None)  # weights from GGUF are plain numbers now
    if not _reads_as_we_write(llm.eval()):
        problem = (
            f"LLM {name!r} ({llm.config.model_type}) computes its logits otherwise than by mask, positions"
        )
        raise InputError(f"{problem} and head; LLaMA, Qwen, Mistral, Gemma and their like do")
    return llm


@torch.no_grad()
def _reads_as_we_write(llm: PreTrainedModel) -> bool:
    """Whether a prompt behind others that it must not see gives the logits that it gives alone."""
    own = torch.arange(1, 5, device=llm.device)[None]  # (1, 4)
    ids, turn = torch.cat([own.flip(1), own], 1), torch.arange(8, device=llm.device)[None]  # (1, 8)
    embedded = llm.get_input_embeddings()(ids)
    try:
        out = llm.base_model(
            inputs_embeds=embedded, attention_mask=block_mask(turn // 4, turn % 4).to(embedded.dtype),
            position_ids=turn % 4, use_cache=False,
        ).last_hidden_state  # (1, 8, d)  # fmt: skip
        ours, theirs = llm.get_output_embeddings()(out[:, 4:]), llm(own).logits  # (1, 4, vocabulary)
    except (TypeError, ValueError, AttributeError, RuntimeError):
        return False
    return bool((ours - theirs).abs().max() <= 0.05 * theirs.abs().max())


def llm_config(size: LLMShape, vocabulary: int) -> PreTrainedConfig:
    """transformers' configuration of that shape: Qwen2's, or LLaMA's where q, k and v have no biases."""
    of, rotary = Qwen2Config if size.bias else LlamaConfig, {"rope_type": "default", "rope_theta": 1e6}
    return of(
        vocab_size=vocabulary, hidden_size=size.d, intermediate_size=size.d_ff, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        tie_word_embeddings=bool(size.tied), max_position_embeddings=4096, initializer_range=size.d**-0.5,
        pad_token_id=0, eos_token_id=2, bos_token_id=None, rope_parameters=rotary,
    )  # fmt: skip


def empty_llm(config: PreTrainedConfig, attention: str) -> nn.Module:
    """The LLM of a configuration, its weights drawn anew."""
    llm = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return swap_norms(llm) if attention == LEAN else llm


def swap_norms(llm: nn.Module) -> nn.Module:
    """Put `Norm`, same weights and same mathematics, where transformers writes the norm out in five steps."""
    for parent in list(llm.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "Qwen2RMSNorm":
                setattr(parent, name, Norm(child.weight, child.variance_epsilon))
    return llm


def precision(llm: nn.Module) -> torch.dtype:
    """What matrices are multiplied in here: autocast's type inside autocast, else the weights' own."""
    weight = llm.get_input_embeddings().weight
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


# Modules whose weights `Runner` and `training_pass` read by themselves.
_PLAIN = {"Embedding", "Linear", "Qwen2RMSNorm", "LlamaRMSNorm", "Norm"}


def plain_weights(llm: nn.Module) -> list[nn.Parameter] | None:
    """The weights of an LLM whose layers are Qwen2's or LLaMA's as transformers has them; None of others.

    None also where something is hooked in or replaces a matrix (an adapter), or devices differ.
    """
    if not _is_plain(llm.config, type(llm).__name__):
        return None
    left, found = [llm], []
    while left:
        module = left.pop()
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        if module._parameters:
            if type(module).__name__ not in _PLAIN:
                return None
            found += [p for p in module._parameters.values() if p is not None]
        left += [child for child in module._modules.values() if child is not None]
    return found if len({p.device for p in found}) == 1 else None


def _is_plain(config: PreTrainedConfig, kind: str) -> bool:
    return (
        kind in ("Qwen2ForCausalLM", "LlamaForCausalLM")
        and config.hidden_act == "silu"
        and config.rope_parameters.get("rope_type", "default") not in ("dynamic", "longrope")
        and not set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    )
