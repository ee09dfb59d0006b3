"""The reward model: a Qwen2, Qwen3 or Llama decoder with one float32 number on top.

Array names end in their axes:

    B rows   S tokens of a row   M responses of a row
    D width  N query heads  K key heads  H head size  F MLP width  V vocabulary  L layers

    tokens_BS --embed--> x_BSD --[norm, attention, norm, MLP] x L--> last token of each response
                                                              --norm, head--> rewards_BM

All projections run over the S tokens of a row together; only attention tells prompts from responses
(`attention.py`). Parameters are float32 masters, cast to the compute type where they are used. As a
reward model for tool calls: arXiv:2509.11963.

    >>> mesh = make_mesh()
    >>> with jax.set_mesh(mesh):
    ...     model = RewardModel(config, nnx.Rngs(0))
    ...     rewards_BM = model(batch)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from toolrm_jax.batch import Batch
from toolrm_jax.bits import as_bits, from_bits, kept
from toolrm_jax.flash_attention import KERNELS, kernel
from toolrm_jax.matmul import project
from toolrm_jax.model_config import ModelConfig
from toolrm_jax.rope import rotate, rotation
from toolrm_jax.sharding import AXES, MeshError, logical_to_spec, on_mesh, width_shards

Array = jax.Array


# "full" keeps each layer's input alone. "projections" keeps the outputs of q, k, v, gate and up and
# of attention too: the dear products are not repeated, and the wide float32 intermediates are not
# stored. "none" keeps everything.
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "projections": jax.checkpoint_policies.save_only_these_names("projection", "attention"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Compute:
    """How to run the model, as opposed to what it is."""

    dtype: str = "bfloat16"
    # What the backward pass finds kept; the rest it computes again. See REMAT.
    remat: str = "projections"
    # Which attention: "auto" goes by the devices. See `flash_attention.py`.
    attention: str = "auto"

    def __post_init__(self):
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"compute dtype {self.dtype!r}: use 'bfloat16' or 'float32'.")
        if self.remat not in REMAT:
            raise ValueError(f"remat {self.remat!r}: use one of {', '.join(map(repr, REMAT))}.")
        if self.attention not in ("auto", *KERNELS):
            names = ", ".join(map(repr, ("auto", *KERNELS)))
            raise ValueError(f"attention {self.attention!r}: use one of {names}.")


class Parameter(nnx.Param):
    """A weight that knows the logical names of its axes (`.axes`, resolved by `sharding.AXES`)."""


def _parameter(
    rngs: nnx.Rngs, axes: tuple[str, ...], shape: tuple[int, ...], scale: float | None
) -> Parameter:
    """Normal(0, scale^2), or ones where scale is None; float32, laid out by its axes."""
    spec = logical_to_spec(axes)
    if scale is None:
        value = jnp.ones(shape, jnp.float32, out_sharding=spec)
    else:
        value = scale * jax.random.normal(rngs.params(), shape, jnp.float32, out_sharding=spec)
    return Parameter(value, axes=axes)


def rms_norm(x: Array, scale: Array, eps: float) -> Array:
    """RMSNorm (arXiv:1910.07467) over the last axis; in float32, as bf16 has 8 bits for a mean."""
    x32 = x.astype(jnp.float32)
    x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * _beside(scale, x32)).astype(x.dtype)


def _beside(weights: Array, x: Array) -> Array:
    """Weights [D] in the rank of x [..., D], spelled out: tests refuse implicit rank promotion."""
    return jax.lax.expand_dims(weights, range(x.ndim - 1))


class Blocks(nnx.Module):
    """All L decoder layers, stacked: `lax.scan` takes the `layers` axis off each parameter."""

    def __init__(self, config: ModelConfig, compute: Compute, rngs: nnx.Rngs):
        c, L, s = config, config.num_layers, config.init_scale
        D, q, kv = c.width, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        new = functools.partial(_parameter, rngs)
        self.attention_norm = new(("layers", "norm"), (L, D), None)
        self.q = new(("layers", "width", "heads"), (L, D, q), s)
        self.k = new(("layers", "width", "kv_heads"), (L, D, kv), s)
        self.v = new(("layers", "width", "kv_heads"), (L, D, kv), s)
        self.o = new(("layers", "heads", "width"), (L, q, D), s)
        self.mlp_norm = new(("layers", "norm"), (L, D), None)
        self.gate = new(("layers", "width", "mlp"), (L, D, c.mlp_width), s)
        self.up = new(("layers", "width", "mlp"), (L, D, c.mlp_width), s)
        self.down = new(("layers", "mlp", "width"), (L, c.mlp_width, D), s)
        if c.qkv_bias:
            self.q_bias = new(("layers", "heads"), (L, q), 0.0)
            self.k_bias = new(("layers", "kv_heads"), (L, kv), 0.0)
            self.v_bias = new(("layers", "kv_heads"), (L, kv), 0.0)
        if c.qk_norm:
            self.q_norm = new(("layers", "norm"), (L, c.head_dim), None)
            self.k_norm = new(("layers", "norm"), (L, c.head_dim), None)
        self.config, self.compute = config, compute

    def __call__(self, x_BSD: Array, cos_sin: tuple[Array, Array], batch: Batch) -> Array:
        """One layer (called on a slice of the stack, inside the scan)."""
        eps = self.config.norm_eps
        attended_BSD = self._attend(rms_norm(x_BSD, self.attention_norm[...], eps), cos_sin, batch)
        x_BSD = x_BSD + attended_BSD
        return x_BSD + self._mlp(rms_norm(x_BSD, self.mlp_norm[...], eps))

    def _attend(self, x_BSD: Array, cos_sin: tuple[Array, Array], batch: Batch) -> Array:
        c = self.config
        q_BSNH, k_BSKH, v_BSKH = (
            self._heads(x_BSD, name, heads)
            for name, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads))
        )
        if c.qk_norm:
            q_BSNH = rms_norm(q_BSNH, self.q_norm[...], c.norm_eps)
            k_BSKH = rms_norm(k_BSKH, self.k_norm[...], c.norm_eps)
        q_BSNH, k_BSKH = rotate(q_BSNH, cos_sin), rotate(k_BSKH, cos_sin)
        out_BSNH = _attention(q_BSNH, k_BSKH, v_BSKH, batch, self.compute.attention)
        B, S, N, H = out_BSNH.shape
        layout = logical_to_spec(("rows", "tokens", "heads"))
        out_BSX = jnp.reshape(out_BSNH, (B, S, N * H), out_sharding=layout)
        return project(out_BSX, self.o[...], self.compute.dtype)

    def _heads(self, x_BSD: Array, name: str, heads: int) -> Array:
        y = kept(project(x_BSD, getattr(self, name)[...], self.compute.dtype), "projection")
        if self.config.qkv_bias:
            y = y + _beside(getattr(self, f"{name}_bias")[...].astype(y.dtype), y)
        # The layout is spelled out: with one key head, JAX would split its head_dim over `tensor`.
        layout = logical_to_spec(("rows", "tokens", "heads", None))
        shape = (*y.shape[:2], heads, self.config.head_dim)
        return jnp.reshape(y, shape, out_sharding=layout)

    def _mlp(self, x_BSD: Array) -> Array:
        dtype = self.compute.dtype
        gate_BSF = kept(project(x_BSD, self.gate[...], dtype), "projection")
        up_BSF = kept(project(x_BSD, self.up[...], dtype), "projection")
        return project(jax.nn.silu(gate_BSF) * up_BSF, self.down[...], dtype)


class RewardModel(nnx.Module):
    """Decoder and scalar head; `model(batch) -> rewards_BM` in float32."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute | None = None):
        compute = compute or Compute()
        _check_mesh(config)
        D = config.width
        self.embedding = _parameter(
            rngs, ("vocab", "width"), (config.vocab_size, D), config.init_scale
        )
        self.blocks = Blocks(config, compute, rngs)
        self.final_norm = _parameter(rngs, ("norm",), (D,), None)
        # A fresh head: standard deviation 1/sqrt(D + 1), as in OpenAI's and TRL's reward models.
        self.head = _parameter(rngs, ("norm",), (D,), (D + 1) ** -0.5)
        if config.head_bias:
            self.head_bias = _parameter(rngs, ("norm",), (1,), 0.0)
        self.config, self.compute = config, compute

    def __call__(self, batch: Batch) -> Array:
        """The reward of every response, float32 [B, M]; any number where there is none."""
        hidden_BSD = self.hidden_states(batch)
        # The rows' tokens brought together, where they are split: a reward is read anywhere.
        hidden_BSD = jax.sharding.reshard(hidden_BSD, logical_to_spec(("rows", None, None)))
        last_BMD = jnp.take_along_axis(hidden_BSD, batch.ends[..., None], axis=1)
        return self.reward(last_BMD)

    def hidden_states(self, batch: Batch) -> Array:
        """The last layer's output before the final norm, [B, S, D] in the compute type."""
        positions_BS = jax.sharding.reshard(batch.positions, logical_to_spec(("rows", "tokens")))
        cos_sin = rotation(self.config.rope, self.config.head_dim, positions_BS)
        x_BSD = self._embed(batch.tokens)

        def layer(x_BSD, block):
            return from_bits(block)(x_BSD, cos_sin, batch), None

        # prevent_cse is for loops that XLA unrolls; a scan does not need it.
        layer = jax.checkpoint(layer, prevent_cse=False, policy=REMAT[self.compute.remat])
        return jax.lax.scan(layer, x_BSD, as_bits(self.blocks))[0]

    def _embed(self, tokens_BS: Array) -> Array:
        """The tokens' vectors. Each device looks up its own columns of the table, for the rows of
        all devices that hold the others; then they swap. So tokens' vectors travel, not the table
        (hundreds of MB), and its gradient is summed where it lives: in float32, as a sum over a
        frequent token's occurrences would stand still in bfloat16."""
        columns = jax.typeof(self.embedding[...]).sharding.spec[1]
        whole_rows = PartitionSpec("data", None)
        tokens_BS = jax.sharding.reshard(tokens_BS, whole_rows)
        x_BSD = (
            self.embedding[...].at[tokens_BS].get(out_sharding=PartitionSpec("data", None, columns))
        )
        layout = logical_to_spec(("rows", "tokens", None))
        return jax.sharding.reshard(x_BSD.astype(self.compute.dtype), layout)

    def reward(self, last_BMD: Array) -> Array:
        """Final norm and head, in float32: bf16 has 8 bits, and rewards that differ would tie."""
        x_BMD = rms_norm(last_BMD.astype(jnp.float32), self.final_norm[...], self.config.norm_eps)
        reward_BM = jnp.einsum(
            "BMD,D->BM", x_BMD, self.head[...], precision=jax.lax.Precision.HIGHEST
        )
        if self.config.head_bias:
            reward_BM = reward_BM + _beside(self.head_bias[...], reward_BM)
        return reward_BM


def _check_mesh(config: ModelConfig) -> None:
    """Raises MeshError where no mesh is set, or the one that is cannot split this model."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise MeshError("No mesh is set: do this inside `with jax.set_mesh(make_mesh()):`.")
    tensor = mesh.shape["tensor"]
    splits = {"num_heads": tensor, "num_kv_heads": tensor, "mlp_width": tensor}
    for field, parts in (splits | {"width": width_shards(mesh)}).items():
        size, axes = getattr(config, field), "fsdp * sequence" if field == "width" else "tensor"
        if size % parts:
            raise MeshError(
                f"{field}={size} cannot be split over {axes}={parts} devices: choose a mesh whose "
                f"{axes} divides it."
            )


def _attention(q_BSNH: Array, k_BSKH: Array, v_BSKH: Array, batch: Batch, name: str) -> Array:
    """Attention -> [B, S, N, H]; each device its own rows, tokens and heads. Only keys and values
    travel, and only where a row's tokens are split over devices."""
    heads = logical_to_spec(("rows", "tokens", "heads", None))
    whole = logical_to_spec(("rows", None, "heads", None))
    rows = logical_to_spec(("rows", None))
    attend = kernel(name)

    def local(q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS):
        offset = jax.lax.axis_index(AXES["tokens"]) * q_BQNH.shape[1]
        return attend(q_BQNH, k_BSKH, v_BSKH, segments_BS, branches_BS, offset)

    k_BSKH, v_BSKH = (jax.sharding.reshard(x, whole) for x in (k_BSKH, v_BSKH))
    segments_BS, branches_BS = (
        jax.sharding.reshard(x, rows) for x in (batch.segments, batch.branches)
    )
    # Pallas kernels do not say over which axes their results vary (check_vma). Gradients of keys and
    # values are summed over the devices that hold the row's other queries, as their specs say.
    sharded = jax.shard_map(
        local, in_specs=(heads, whole, whole, rows, rows), out_specs=heads, check_vma=False
    )
    return sharded(q_BSNH, k_BSKH, v_BSKH, segments_BS, branches_BS)


Params = dict[str, Any]
"""Parameters as plain nested dicts of arrays: what is trained, saved and converted."""


class Forward:
    """`forward(params, batch) -> rewards_BM`: the model as a pure function of its parameters."""

    def __init__(self, config: ModelConfig, compute: Compute | None = None):
        self.config, self.compute = config, compute or Compute()
        self._graphdef, _ = _split(config, self.compute)

    def __call__(self, params: Params, batch: Batch) -> Array:
        return nnx.merge(self._graphdef, params)(batch)


def init_params(config: ModelConfig, seed: int) -> Params:
    """Random parameters, made where they live: on the current mesh, with no copy on the host."""
    return jax.jit(lambda: nnx.to_pure_dict(nnx.state(RewardModel(config, nnx.Rngs(seed)))))()


def abstract_params(config: ModelConfig, mesh: Mesh) -> Params:
    """Shapes, types and layouts of the parameters on a mesh, without the arrays."""
    with jax.set_mesh(mesh):
        _, abstract = _split(config, Compute())

    return on_mesh(abstract, mesh)


def _split(config: ModelConfig, compute: Compute) -> tuple[Any, Params]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: RewardModel(config, nnx.Rngs(0), compute)))
    return graphdef, nnx.to_pure_dict(state)
