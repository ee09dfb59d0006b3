"""Row attention by the kernels of TPUs and GPUs; `kernel()` picks the one for the devices in use.

    TPU    splash: a Pallas kernel of JAX that skips the blocks of the mask in which nothing is seen
    GPU    cuDNN's flash attention, with the mask as a bias
    else   `attention.row_attention`, plain JAX

All have its signature and meaning; `tests/test_flash_attention.py` holds splash, interpreted, to
it, `tests/test_cudnn_attention.py` cuDNN, which takes a GPU. "Prompt or own branch" cannot be said
by segment ids, which both kernels know, nor by two calls merged by their normalisers, whose
gradients JAX drops. So the mask is written out, once a row and step: Q * S bytes for splash, twice
(34 MB for a row of 4,096 tokens); for cuDNN 2 * Q * S, and as much in the backward pass for its
gradient, which is not used. The logits stay on the chip. Splash:
`jax.experimental.pallas.ops.tpu.splash_attention`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash

from toolrm_jax.attention import Tokens, padded, row_attention, tokens_of, visible
from toolrm_jax.sharding import platform

Array = jax.Array

# The kernel's blocks of queries and keys at most: larger ones are faster, and skip less. Their
# logits and mask take 3 MB of a TPU's VMEM.
_BLOCK = 512
_LANES = 128  # sizes that a TPU's kernel takes are multiples of it


def kernel(name: str = "auto") -> Callable[..., Array]:
    """Row attention by name: "plain", "splash" (interpreted where there is no TPU), "cudnn", or
    "auto", which goes by the devices of the current mesh."""
    if name == "auto":
        name = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}.get(platform(), "plain")
    return KERNELS[name]


def splash_attention(
    q_BQNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments_BS: Array,
    branches_BS: Array,
    offset: Array | int = 0,
) -> Array:
    """See `attention.row_attention`."""
    Q, H = q_BQNH.shape[1], q_BQNH.shape[3]
    q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS = _in_multiples(
        _LANES, q_BQNH * H**-0.5, k_BSKH, v_BSKH, segments_BS, branches_BS
    )

    def row(arrays):
        q_QNH, k_SKH, v_SKH, segments_S, branches_S = arrays
        mask_QS = _mask(segments_S, branches_S, offset, len(q_QNH))
        attend = _splash_kernel(mask_QS)
        out_NQH = attend(*(x.swapaxes(0, 1) for x in (q_QNH, k_SKH, v_SKH)))
        return out_NQH.swapaxes(0, 1)

    rows = (q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS)
    # One after the other: the mask is an argument of the kernel, which takes one at a time.
    return jnp.stack([row(arrays) for arrays in zip(*rows, strict=True)])[:, :Q]


def _in_multiples(of: int, q_BQNH: Array, *rest_BSX: Array) -> tuple[Array, ...]:
    """Queries, and what all tokens of a row have, each with padding up to a multiple; the row still
    reaches beyond its last query."""
    end = -q_BQNH.shape[1] % of
    rest_BSX = tuple(padded(x, end + -(x.shape[1] + end) % of) for x in rest_BSX)
    return padded(q_BQNH, end), *rest_BSX


def _mask(segments_S: Array, branches_S: Array, offset: Array | int, Q: int) -> Array:
    """Which of a row's tokens Q of them from `offset` on see, bool [Q, S]."""
    row = tokens_of(segments_S, branches_S)
    queries = (jax.lax.dynamic_slice_in_dim(x_S, jnp.asarray(offset), Q) for x_S in row)
    return visible(Tokens(*queries), row)


def _splash_kernel(mask_QS: Array) -> Callable[..., Array]:
    Q, S = mask_QS.shape
    q, k = _block(Q), _block(S)
    sizes = splash.BlockSizes(
        block_q=q,
        block_kv=k,
        block_kv_compute=k,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_kv_dkv_compute=k,
        use_fused_bwd_kernel=True,
    )
    made = splash.make_splash_mha(
        mask_QS[None],  # the same for all heads
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
        interpret=platform() != "tpu",
    )
    # Inside of jit, jax 0.10 makes a traced array of this flag, and then asks for its value.
    made.fwd_mask_info = made.fwd_mask_info._replace(is_dynamic_mask=True)
    return made


def _block(size: int) -> int:
    return max(b for b in range(_LANES, _BLOCK + 1, _LANES) if size % b == 0)


def cudnn_attention(
    q_BQNH: Array,
    k_BSKH: Array,
    v_BSKH: Array,
    segments_BS: Array,
    branches_BS: Array,
    offset: Array | int = 0,
) -> Array:
    """See `attention.row_attention`. Float32, which cuDNN does not take, goes the plain way."""
    if q_BQNH.dtype == jnp.float32:
        return row_attention(q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS, offset)
    Q = q_BQNH.shape[1]
    # cuDNN's backward pass refuses a bias of odd sizes.
    q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS = _in_multiples(
        2, q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS
    )

    mask_BQS = jax.vmap(lambda s_S, b_S: _mask(s_S, b_S, offset, q_BQNH.shape[1]))(
        segments_BS, branches_BS
    )
    attended_BQNH = jax.nn.dot_product_attention(
        q_BQNH, k_BSKH, v_BSKH, mask=mask_BQS[:, None], implementation="cudnn"
    )
    return attended_BQNH[:, :Q]


KERNELS = {"plain": row_attention, "splash": splash_attention, "cudnn": cudnn_attention}
