"""Text encoders in checkpoints: sizes read off the tensors, and the tensors that the sizes ask for.

Both layouts have transformers' names, so nothing is mapped. A single file has no projection of
CLIP-L, whose pooled vector is used as it is: there it is the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rectiflow.base.errors import ConfigError
from rectiflow.models.published.given import whole_number
from rectiflow.models.published.names import count_numbered

#: T5's table of tokens under either name, which are one tensor.
T5_TABLES = ("shared.weight", "encoder.embed_tokens.weight")
PROJECTION = "text_projection.weight"
#: A buffer that older files hold; transformers makes it anew.
POSITION_IDS = "text_model.embeddings.position_ids"

_HEAD_DIM = 64
#: Of transformers' activations those that text towers have.
_ACTIVATIONS = (
    *("quick_gelu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python"),
    *("relu", "silu", "swish", "tanh"),
)
_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class CLIPTextSize:
    """Sizes of a CLIP text tower with its projection."""

    width: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    num_tokens: int
    length: int
    pooled_dim: int
    activation: str
    end_token: int = 2
    """As released; transformers then takes the highest id of a prompt for its end."""

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.width % self.num_heads:
            raise ConfigError(
                f"a width of {self.width} is not cut into num_attention_heads={self.num_heads}"
            )
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(
                f"hidden_act={self.activation!r:.40} is none of {', '.join(_ACTIVATIONS)}"
            )

    def wanted(self, present: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Names and shapes; what may be left out, only where it is `present`."""
        d = self.width
        found = {
            "text_model.embeddings.token_embedding.weight": (self.num_tokens, d),
            "text_model.embeddings.position_embedding.weight": (self.length, d),
            "text_model.final_layer_norm.weight": (d,),
            "text_model.final_layer_norm.bias": (d,),
        }
        for i in range(self.num_layers):
            layer = f"text_model.encoder.layers.{i}."
            for name, rows, columns in (
                *((f"self_attn.{part}_proj", d, d) for part in ("q", "k", "v", "out")),
                ("mlp.fc1", self.mlp_dim, d),
                ("mlp.fc2", d, self.mlp_dim),
            ):
                found[f"{layer}{name}.weight"] = (rows, columns)
                found[f"{layer}{name}.bias"] = (rows,)
            for norm in ("layer_norm1", "layer_norm2"):
                found[f"{layer}{norm}.weight"] = found[f"{layer}{norm}.bias"] = (d,)
        optional = {PROJECTION: (self.pooled_dim, d), POSITION_IDS: (1, self.length)}
        return found | {name: shape for name, shape in optional.items() if name in present}

    def to_transformers(self) -> dict[str, Any]:
        """The config.json of transformers' CLIPTextModelWithProjection."""
        return {
            "architectures": ["CLIPTextModelWithProjection"],
            "model_type": "clip_text_model",
            "hidden_act": self.activation,
            "hidden_size": self.width,
            "intermediate_size": self.mlp_dim,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": self.length,
            "num_attention_heads": self.num_heads,
            "num_hidden_layers": self.num_layers,
            "projection_dim": self.pooled_dim,
            "vocab_size": self.num_tokens,
            "bos_token_id": 0,
            "eos_token_id": self.end_token,
            "pad_token_id": 1,
        }


@dataclass(frozen=True, kw_only=True)
class T5TextSize:
    """Sizes of a T5 v1.1 encoder."""

    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_tokens: int
    num_buckets: int

    def wanted(self, present: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Names and shapes; the table of tokens under the names that are `present`."""
        d, inner = self.width, self.num_heads * self.head_dim
        tables = [name for name in T5_TABLES if name in present] or T5_TABLES[:1]
        found: dict[str, tuple[int, ...]] = dict.fromkeys(tables, (self.num_tokens, d))
        for i in range(self.num_layers):
            attention = f"encoder.block.{i}.layer.0."
            for part in ("q", "k", "v"):
                found[f"{attention}SelfAttention.{part}.weight"] = (inner, d)
            found[f"{attention}SelfAttention.o.weight"] = (d, inner)
            found[f"{attention}layer_norm.weight"] = (d,)
            mlp = f"encoder.block.{i}.layer.1."
            found[f"{mlp}DenseReluDense.wi_0.weight"] = (self.mlp_dim, d)
            found[f"{mlp}DenseReluDense.wi_1.weight"] = (self.mlp_dim, d)
            found[f"{mlp}DenseReluDense.wo.weight"] = (d, self.mlp_dim)
            found[f"{mlp}layer_norm.weight"] = (d,)
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found[bias] = (self.num_buckets, self.num_heads)
        found["encoder.final_layer_norm.weight"] = (d,)
        return found

    def to_transformers(self) -> dict[str, Any]:
        """The config.json of transformers' T5EncoderModel."""
        return {
            "architectures": ["T5EncoderModel"],
            "model_type": "t5",
            "d_ff": self.mlp_dim,
            "d_kv": self.head_dim,
            "d_model": self.width,
            "feed_forward_proj": "gated-gelu",
            "is_encoder_decoder": False,
            "layer_norm_epsilon": 1e-06,
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "relative_attention_max_distance": 128,
            "relative_attention_num_buckets": self.num_buckets,
            "tie_word_embeddings": True,
            "vocab_size": self.num_tokens,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
        }


TextSize = CLIPTextSize | T5TextSize

RELEASED_TEXT: dict[str, TextSize] = {
    "clip_l": CLIPTextSize(
        width=768,
        num_layers=12,
        num_heads=12,
        mlp_dim=3072,
        num_tokens=49408,
        length=77,
        pooled_dim=768,
        activation="quick_gelu",
    ),
    "clip_g": CLIPTextSize(
        width=1280,
        num_layers=32,
        num_heads=20,
        mlp_dim=5120,
        num_tokens=49408,
        length=77,
        pooled_dim=1280,
        activation="gelu",
    ),
    "t5": T5TextSize(
        width=4096,
        num_layers=24,
        num_heads=64,
        head_dim=64,
        mlp_dim=10240,
        num_tokens=32128,
        num_buckets=32,
    ),
}


def infer_text_size(kind: str, shapes: _Shapes, given: Mapping[str, Any]) -> TextSize:
    """An encoder's sizes from its tensors' names and shapes.

    `given` holds what transformers' config.json says; heads, activation and the end of a prompt are
    taken from it, and are as released without.

    Raises:
        KeyError: a tensor that tells a size is missing.
        ValueError: what is given is no such number.
        ConfigError: an activation that is not known, or heads that the width has no room for.
    """
    if kind == "t5":
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        num_buckets, num_heads = shapes[bias]
        table = next((name for name in T5_TABLES if name in shapes), T5_TABLES[0])
        num_tokens, width = shapes[table]
        return T5TextSize(
            width=width,
            num_layers=count_numbered(shapes, "encoder.block"),
            num_heads=num_heads,
            head_dim=shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0] // num_heads,
            mlp_dim=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
            num_tokens=num_tokens,
            num_buckets=num_buckets,
        )
    num_tokens, width = shapes["text_model.embeddings.token_embedding.weight"]
    # Only CLIP-L goes without a projection.
    pooled_dim = shapes[PROJECTION][0] if kind == "clip_g" or PROJECTION in shapes else width
    return CLIPTextSize(
        width=width,
        num_layers=count_numbered(shapes, "text_model.encoder.layers"),
        num_heads=whole_number(given, "num_attention_heads", width // _HEAD_DIM),
        mlp_dim=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_tokens=num_tokens,
        length=shapes["text_model.embeddings.position_embedding.weight"][0],
        pooled_dim=pooled_dim,
        activation=given.get("hidden_act", "quick_gelu" if kind == "clip_l" else "gelu"),
        end_token=whole_number(given, "eos_token_id", 2, least=0),
    )
