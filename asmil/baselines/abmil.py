"""ABMIL: attention over patches by a small network, plain or gated.

Source: Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, arXiv 1802.04712: h =
relu(W x), a = softmax(w (tanh(V h) * sigmoid(U h))) over the patches, logits = C sum_n a_n h_n. The loss here is the
cross-entropy of C classes, where the paper clamps one sigmoid.
"""

from torch import Tensor, nn

from asmil.baselines.bag_model import Attention, ProjectedModel, pool


class ABMIL(ProjectedModel):
    """Classify the attention-weighted mean of the patches.

    Parameters
    ----------
    d_in, classes, d_inner
        As for `ProjectedModel`.
    d_attention
        Width of the attention network.
    gated
        Whether tanh(V h) is multiplied by sigmoid(U h).
    dropout
        Share of the projected features, and of the attention network, dropped in training.
    projection_bias, attention_bias
        Whether the projection, and the attention network, have biases.
    """

    def __init__(
        self,
        d_in: int,
        classes: int,
        *,
        d_inner: int | None = None,
        d_attention: int = 128,
        gated: bool = True,
        dropout: float = 0.0,
        projection_bias: bool = True,
        attention_bias: bool = True,
    ) -> None:
        super().__init__(
            d_in,
            classes,
            d_inner=d_inner,
            bias=projection_bias,
            d_attention=d_attention,
            gated=gated,
            dropout=dropout,
            projection_bias=projection_bias,
            attention_bias=attention_bias,
        )
        self.attend = Attention(self.width, d_attention, gated=gated, bias=attention_bias, dropout=dropout)
        self.classify = nn.Linear(self.width, classes)

    def classify_bag(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits [C] and attention logits [1, N] of one bag [N, d_in]."""
        found, attention_logits = self.bag_vector(features)
        logits: Tensor = self.classify(found)
        return logits, attention_logits

    def bag_vector(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Give the attention-weighted mean [E] and the attention logits [1, N]."""
        hidden = self.project(features)
        attention_logits = self.attend(hidden)
        return pool(attention_logits, hidden).squeeze(0), attention_logits

    def bag_score(self, features: Tensor) -> Tensor:
        """Give the attention [N]."""
        return self.bag_attention_logits(features, None).softmax(-1).squeeze(0)
