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

from serpipe.models.packed import attend, attend_within


class FusedWavLMAttention(WavLMAttention):
    """Takes the place of `WavLMAttention`: same arguments, no attention weights."""

    # The stock annotation promises weights, and a tuple for the bias; the stock encoder uses neither.
    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | list[int] | None = None,
        position_bias: Tensor | None = None,
        index: int = 0,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, None, Tensor]:
        """Attend.

        Args:
            hidden_states: (n, frames, width).
            attention_mask: bool (n, frames), the frames that are not padding; None where all are; or the sizes of
                segments that lie one after another in one row.
            position_bias: (heads, frames, frames) of the longest segment, of the first layer; None in that layer,
                which makes it.
            index: of the layer; not used.
            kwargs: what else the stock encoder hands on; not used.

        Returns:
            (n, frames, width), no weights, and the position bias for the next layer.
        """
        rows, frames, _ = hidden_states.shape
        if position_bias is None:
            longest = max(attention_mask) if isinstance(attention_mask, list) else frames
            position_bias = self.compute_bias(longest, longest)
        heads = hidden_states.view(rows, frames, self.num_heads, self.head_dim).transpose(1, 2)
        gates = self.gru_rel_pos_linear(heads).view(rows, self.num_heads, frames, 2, 4).sum(-1).sigmoid()
        gate = gates[..., :1] * (gates[..., 1:] * self.gru_rel_pos_const - 1.0) + 2.0

        def split(values: Tensor) -> Tensor:
            return values.view(rows, frames, self.num_heads, self.head_dim).transpose(1, 2)

        query, key, value = (split(project(hidden_states)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if isinstance(attention_mask, list):
            # What a place adds depends on its distance alone: a shorter segment takes the corner of the longest.
            biases = [
                part * position_bias[:, :size, :size]
                for part, size in zip(gate.split(attention_mask, 2), attention_mask, strict=True)
            ]
            attended = attend_within(query, key, value, attention_mask, biases)
        else:
            bias = gate * position_bias
            if attention_mask is not None:
                bias.masked_fill_(~attention_mask[:, None, None, :], -torch.inf)
            attended = attend(query, key, value, bias)
        joined = attended.transpose(1, 2).reshape(rows, frames, self.embed_dim)
        return self.out_proj(joined), None, position_bias
