"""The whole model: vision tower, mergers, decoder, head.

HF `Qwen2_5_VLForConditionalGeneration`, `Qwen3VLForConditionalGeneration`, `Qwen3VLMoeForConditionalGeneration`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from videoauto_jax.kernels import context_parallel
from videoauto_jax.kernels.attention import group_attention, self_attention
from videoauto_jax.kernels.sharded import CONTEXT
from videoauto_jax.models.config import Qwen3VisionConfig, QwenVLConfig
from videoauto_jax.models.inputs import ModelInputs, VisionInputs
from videoauto_jax.models.layers import Projection, layer_norm, rms_norm, stack
from videoauto_jax.models.partition import constrain
from videoauto_jax.models.qwen2_5_vision import NORM_EPS, WindowTower
from videoauto_jax.models.qwen3_vision import DeepStackTower
from videoauto_jax.models.text import Attention, Decoder
from videoauto_jax.models.vision import PatchMerger, VisionEmbeddings, VisionFeatures


class QwenVL(nnx.Module):
    """A video language model.

    Args:
        config: the model's facts.
        dtype: dtype of activations and matrix products.
        param_dtype: dtype in which parameters are stored.
        rngs: random keys of the initial parameters.
    """

    def __init__(self, config: QwenVLConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype}
        vision, text = config.vision, config.text
        new = isinstance(vision, Qwen3VisionConfig)
        self.vision = (DeepStackTower if new else WindowTower)(vision, **options, rngs=rngs)
        norm = layer_norm if new else partial(rms_norm, eps=NORM_EPS)
        self.merger = PatchMerger(vision, norm, join_first=False, **options, rngs=rngs)
        if vision.deepstack_layers:
            merger = lambda keys: PatchMerger(vision, norm, join_first=True, **options, rngs=keys)  # noqa: E731
            self.deepstack_mergers = stack(merger, len(vision.deepstack_layers), rngs)
        self.text = Decoder(text, **options, rngs=rngs)
        if not text.tied_head:
            self.head = Projection("...d,dv->...v", (text.hidden_size, text.vocab_size), **options, rngs=rngs)

    def __call__(self, inputs: ModelInputs) -> Float[Array, "B T V"]:
        """Logits of every slot in float32. Training never calls this: it needs `[B, T, V]` at once."""
        return self.logits(self.hidden(inputs))

    def encode_vision(self, vision: VisionInputs, *, remat: bool = False) -> VisionFeatures:
        """The frozen tower's features, to be kept and reused."""
        return self.vision(vision, remat=remat)

    def merge_vision(self, features: VisionFeatures) -> VisionEmbeddings:
        """The trained mergers' embeddings of the tower's features."""
        slots = self.merger(features.last)
        if not self.config.vision.deepstack_layers:
            return VisionEmbeddings(slots, jnp.zeros((0, *slots.shape), slots.dtype))
        graph, weights = nnx.split(self.deepstack_mergers)
        deepstack = jax.vmap(lambda weight, x: nnx.merge(graph, weight)(x))(weights, features.deepstack)
        return VisionEmbeddings(slots, deepstack)

    def embed(
        self, token_ids: Int[Array, "B T"], vision_index: Int[Array, "B T"], embeddings: VisionEmbeddings | None
    ) -> Float[Array, "B T D"]:
        """Input embeddings, visual slots filled."""
        x = self.text.embed(token_ids)
        if embeddings is None:
            return x
        return jnp.where(vision_index[..., None] >= 0, embeddings.slots[jnp.maximum(vision_index, 0)], x)

    def forward(
        self,
        inputs: ModelInputs,
        attention: Attention,
        features: VisionFeatures | None = None,
        *,
        embeddings: VisionEmbeddings | None = None,
        caches: object = None,
        order: Int[np.ndarray, "T"] | None = None,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T D"], object]:
        """Hidden states under any attention, and what it yields per layer (a cache, for instance).

        Args:
            inputs: the batch; its patches are not read if `features` or `embeddings` are given.
            attention: see `videoauto_jax.models.text.Attention`.
            features: the tower's features of `inputs.vision`, computed earlier.
            embeddings: those of the mergers, computed earlier.
            caches: pytree with a leading layer axis that `attention` gets its slices of, or None.
            order: splits rows over the mesh's `context` axis: `attention` gets them in this order, which comes from
                `kernels.context_parallel.row_order`, and hidden states have the row's own again.
            remat: recompute activations in the backward pass.
        """
        if embeddings is None and features is None and inputs.vision is not None:
            features = self.encode_vision(inputs.vision, remat=remat)
        if features is not None:
            embeddings = self.merge_vision(features)
        token_ids, positions, index = inputs.token_ids, inputs.positions, inputs.vision_index
        if order is not None:
            token_ids, positions, index = (x[..., order] for x in (token_ids, positions, index))
        x = self.embed(token_ids, index, embeddings)
        deepstack = None if embeddings is None else (embeddings.deepstack, index)
        options = {"caches": caches, "deepstack": deepstack, "remat": remat}
        x, yielded = self.text(x, positions, attention, token_axis=None if order is None else CONTEXT, **options)
        return x if order is None else constrain(x[:, np.argsort(order)]), yielded

    def hidden(
        self,
        inputs: ModelInputs,
        features: VisionFeatures | None = None,
        *,
        prompt_length: int | None = None,
        branch_bound: int | None = None,
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """Hidden states of ordinary rows, or of group rows if `prompt_length` is given; computed in parts along the
        mesh's `context` axis where it divides them (`kernels.context_parallel.row_order`).

        Args:
            inputs: the batch.
            features: the tower's features of `inputs.vision`, computed earlier.
            prompt_length: static length of the prompt's part of group rows (`kernels.attention.group_attention`).
            branch_bound: static upper bound on the length of one branch of a group row.
            remat: recompute activations in the backward pass.
        """
        segments, length = inputs.segment_ids, inputs.token_ids.shape[1]
        prompt = length if prompt_length is None else prompt_length
        order = context_parallel.row_order(prompt, length - prompt)

        def attention(q: Array, k: Array, v: Array, cache: None) -> tuple[Array, None]:
            if order is not None:
                return context_parallel.group_attention(q, k, v, segments, prompt_length=prompt), None
            if prompt_length is None:
                return self_attention(q, k, v, segments, causal=True, aligned=True), None
            out = group_attention(q, k, v, segments, prompt_length=prompt_length, segment_bound=branch_bound)
            return out, None

        return self.forward(inputs, attention, features, order=order, remat=remat)[0]

    def logits(self, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits in float32, whatever the dtype of the product: rounded ones would spoil log-probabilities."""
        tied = self.config.text.tied_head
        kernel = self.text.embed.embedding[...].T if tied else self.head.kernel[...]
        # A row alone is given a second one: for one, XLA may write the whole head in float32 before it multiplies.
        rows = jnp.pad(hidden.reshape(-1, hidden.shape[-1]), [(0, 1), (0, 0)]) if _alone(hidden) else hidden
        out = jnp.einsum("...d,dv->...v", rows, kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)
        return out[0].reshape(*hidden.shape[:-1], -1) if _alone(hidden) else out


def _alone(hidden: Float[Array, "... D"]) -> bool:
    return hidden.size == hidden.shape[-1]


def parameter_paths(tree: nnx.State | nnx.Module) -> dict[str, jax.Array]:
    """Flat `{"text/layers/mlp/up/kernel": array}` view of a model's parameters."""
    state = nnx.state(tree, nnx.Param) if isinstance(tree, nnx.Module) else tree
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
