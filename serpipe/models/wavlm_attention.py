"""WavLM's gated relative attention through PyTorch's fused kernel, which the stock class does not use.

The stock class copies the position bias for every row and keeps the attention weights of every layer for a caller who
might ask; in a batch of long segments that costs most of the time. Same parameters, same numbers (arXiv 2110.13900,
section 3.1).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from serpipe.models.packed import attend


class FusedWavLMAttention(WavLMAttention):
    """Takes the place of `WavLMAttention`: same arguments, no attention weights."""

    # The stock annotation promises weights, and a tuple for the bias; the stock encoder uses neither.
    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        index: int = 0,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, None, Tensor]:
        """Attend.

        Args:
            hidden_states: (n, frames, width).
            attention_mask: bool (n, frames), the frames that are not padding; None where all are.
            position_bias: (heads, frames, frames), of the first layer; None in that layer, which makes it.
            index: of the layer; not used.
            kwargs: what else the stock encoder hands on; not used.

        Returns:
            (n, frames, width), no weights, and the position bias for the next layer.
        """
        rows, frames, _ = hidden_states.shape
        if position_bias is None:
            position_bias = self.compute_bias(frames, frames)
        heads = hidden_states.view(rows, frames, self.num_heads, self.head_dim).transpose(1, 2)
        gates = self.gru_rel_pos_linear(heads).view(rows, self.num_heads, frames, 2, 4).sum(-1).sigmoid()
        gate = gates[..., :1] * (gates[..., 1:] * self.gru_rel_pos_const - 1.0) + 2.0
        bias = gate * position_bias
        if attention_mask is not None:
            bias.masked_fill_(~attention_mask[:, None, None, :], -torch.inf)

        def split(values: Tensor) -> Tensor:
            return values.view(rows, frames, self.num_heads, self.head_dim).transpose(1, 2)

        attended = attend(
            split(self.q_proj(hidden_states)),
            split(self.k_proj(hidden_states)),
            split(self.v_proj(hidden_states)),
            bias,
        )
        joined = attended.transpose(1, 2).reshape(rows, frames, self.embed_dim)
        return self.out_proj(joined), None, position_bias
