"""The configuration of a gpt-oss model: every number that the forward pass needs, without the weights."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Config:
    """The defaults are gpt-oss-20b's.

    >>> Config().is_sliding(0), Config().is_sliding(1)
    (True, False)
    """

    n_layers: int = 24
    d_model: int = 2880
    n_heads: int = 64
    n_kv_heads: int = 8
    d_head: int = 64
    n_experts: int = 32
    n_active: int = 4
    d_mlp: int = 2880
    d_vocab: int = 201088
    n_ctx: int = 131072  # maximum number of positions
    window: int = 128  # a sliding layer attends to the position itself and the window - 1 before it
    layer_types: tuple[str, ...] = ("sliding_attention", "full_attention") * 12
    eps: float = 1e-5
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702
    rope_theta: float = 150_000.0
    rope_factor: float = 32.0  # YaRN; 1.0 means plain RoPE
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_original: int = 4096  # context length before YaRN extended it
    rope_truncate: bool = False  # transformers' default is True, gpt-oss needs False

    def is_sliding(self, layer: int) -> bool:
        return self.layer_types[layer] == "sliding_attention"

    @property
    def n_params(self) -> int:
        """The number of parameters, as published: 20,914,757,184 for gpt-oss-20b.

        >>> Config().n_params
        20914757184
        """
        q, kv = self.n_heads * self.d_head, self.n_kv_heads * self.d_head
        attn = self.d_model * (q + 2 * kv) + q + 2 * kv + q * self.d_model + self.d_model + self.n_heads
        expert = (self.d_model + 1) * 2 * self.d_mlp + (self.d_mlp + 1) * self.d_model
        router = (self.d_model + 1) * self.n_experts
        block = attn + router + self.n_experts * expert + 2 * self.d_model
        return self.n_layers * block + 2 * self.d_vocab * self.d_model + self.d_model

    @property
    def n_packed(self) -> int:
        """The number of parameters that the releases store in MXFP4: the experts' matrices.

        >>> Config().n_packed
        19110297600
        """
        return self.n_layers * self.n_experts * 3 * self.d_model * self.d_mlp
