"""Several small LSTMs trained side by side in one, and served as one.

A group of M one-layer LSTMs of width H that all read the same value is itself one LSTM of width M·H whose recurrent weights are block-diagonal, and the mean
of their M linear heads is one linear head. So an ensemble costs one forward, and its folder is that of any LSTM.
"""

import torch
from torch import Tensor, nn


class EnsembleLSTM(nn.Module):
    """`members` independent LSTMs of `width` units, one input feature and one output each. No weight joins two members, so neither does a gradient."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.members, self.width = members, width
        self.rnn = nn.LSTM(members, members * width)
        self.head_weight = nn.Parameter(torch.empty(members, width))
        self.head_bias = nn.Parameter(torch.zeros(members))
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Draw every member's weights as `torch.nn.LSTM` of its width would, open the forget gates (bias 1), and cut what joins two members."""
        bound = self.width**-0.5
        owner = torch.arange(self.members).repeat_interleave(self.width)
        masks = (owner.repeat(4)[:, None] == torch.arange(self.members), owner.repeat(4)[:, None] == owner)
        for parameter in (*self.rnn.parameters(), self.head_weight):
            parameter.uniform_(-bound, bound)
        self.rnn.bias_hh_l0.zero_()
        self.rnn.bias_ih_l0[len(owner) : 2 * len(owner)] += 1
        for parameter, mask in zip((self.rnn.weight_ih_l0, self.rnn.weight_hh_l0), masks, strict=True):
            parameter.mul_(mask)
            parameter.register_hook(mask.mul)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map each member's own inputs [T, B, members], from an empty state, to its outputs [T, B, members]."""
        hidden, _ = self.rnn(inputs)
        return (hidden.unflatten(-1, (self.members, self.width)) * self.head_weight).sum(-1) + self.head_bias

    def merged(self) -> dict[str, Tensor]:
        """Return the weights of the one LSTM with one input and one output that computes the members' mean, under their served names."""
        return {
            "rnn.weight_ih_l0": self.rnn.weight_ih_l0.sum(1, keepdim=True),
            "rnn.weight_hh_l0": self.rnn.weight_hh_l0,
            "rnn.bias_ih_l0": self.rnn.bias_ih_l0,
            "rnn.bias_hh_l0": self.rnn.bias_hh_l0,
            "head.weight": self.head_weight.reshape(1, -1) / self.members,
            "head.bias": self.head_bias.mean().reshape(1),
        }
