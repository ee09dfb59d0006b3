"""GGUF: config, tensors and tokenizer equal transformers' own; bad files give one clear error."""

import json
import random
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import gguf
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from toolrm_jax import assets
from toolrm_jax.gguf_llama import GgufError, build_tokenizer, read_gguf

HEADS, KV_HEADS, HEAD_DIM, WIDTH, MLP, LAYERS = 4, 2, 8, 16, 24, 2
TOKENS = ["<s>", "</s>", "a", "b", "ab", "Ġ", "1", "2", "Ċ", "Ċ1"]


@pytest.fixture(scope="session")
def smollm2(smollm2_model):
    return smollm2_model


def tiny_weights(tied: bool) -> dict[str, np.ndarray]:
    """Random weights of a two-layer Llama under Hugging Face's names."""
    shapes = {"model.embed_tokens.weight": (len(TOKENS), WIDTH), "model.norm.weight": (WIDTH,)}
    if not tied:
        shapes["lm_head.weight"] = (len(TOKENS), WIDTH)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (WIDTH,),
            f"{layer}.post_attention_layernorm.weight": (WIDTH,),
            f"{layer}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, WIDTH),
            f"{layer}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"{layer}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
            f"{layer}.self_attn.o_proj.weight": (WIDTH, HEADS * HEAD_DIM),
            f"{layer}.mlp.gate_proj.weight": (MLP, WIDTH),
            f"{layer}.mlp.up_proj.weight": (MLP, WIDTH),
            f"{layer}.mlp.down_proj.weight": (WIDTH, MLP),
        }
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def as_llama_cpp(name: str, weights: np.ndarray) -> np.ndarray:
    """llama.cpp's row order: rows r and r + HEAD_DIM/2 of a head become neighbours."""
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(name.split(".")[-2])
    if heads is None:
        return weights
    half = HEAD_DIM // 2
    order = [h * HEAD_DIM + r + s * half for h in range(heads) for r in range(half) for s in (0, 1)]
    return weights[order]


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.weight", name)
    return (f"blk.{match[1]}." if match[1] else "") + f"{GGUF_NAMES[match[2]]}.weight"


def write_tiny(path: Path, *, tied=True, arch="llama", drop=(), extra=(), **metadata) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model(metadata.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(metadata.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *([1] * (len(TOKENS) - 2))])
    writer.add_token_merges(["a b", "Ċ 1"])
    writer.add_eos_token_id(1)
    if "bos" in metadata:
        writer.add_bos_token_id(metadata["bos"])
    if "pad" in metadata:
        writer.add_pad_token_id(metadata["pad"])
    if "experts" in metadata:
        writer.add_expert_count(metadata["experts"])
    if "scaling" in metadata:
        writer.add_rope_scaling_type(metadata["scaling"])
    stored = metadata.get("stored", {"weights": {}})
    for name, weights in tiny_weights(tied).items():
        if name in stored["weights"]:
            data = as_llama_cpp(name, stored["weights"][name])
            plain = data.dtype in (np.float32, np.float16)
            writer.add_tensor(gguf_name(name), data, raw_dtype=None if plain else stored["kind"])
        elif gguf_name(name) not in drop:
            writer.add_tensor(gguf_name(name), as_llama_cpp(name, weights))
    for name in extra:
        writer.add_tensor(name, np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_tensors_come_back_under_their_names_with_rows_in_order(tmp_path, tied):
    model = read_gguf(write_tiny(tmp_path / "m.gguf", tied=tied))
    weights = tiny_weights(tied)
    assert set(model.tensors) == set(weights)
    for name, expected in weights.items():
        np.testing.assert_array_equal(model.tensors[name], expected, err_msg=name)
        assert model.tensors[name].dtype == np.float32


@pytest.mark.parametrize("tied", [True, False])
def test_the_config_is_what_llama_config_holds(tmp_path, tied):
    from transformers import LlamaConfig

    config = read_gguf(write_tiny(tmp_path / "m.gguf", tied=tied)).config
    assert config["tie_word_embeddings"] is tied
    assert config["rms_norm_eps"] == 1e-6
    assert (config["head_dim"], config["num_key_value_heads"]) == (HEAD_DIM, KV_HEADS)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 50000.0}
    held = LlamaConfig(**config).to_dict()
    assert {name: held[name] for name in config} == config


def test_smollm2_reads_as_published(smollm2):
    config = smollm2.config
    assert (config["num_hidden_layers"], config["hidden_size"]) == (30, 576)
    assert config["rms_norm_eps"] == 1e-5
    assert sum(smollm2.tensors[name].size for name in smollm2.tensors) == 134_515_008
    assert smollm2.tokenizer.eos_token == "<|im_end|>"
    assert "<|im_start|>" in smollm2.tokenizer.chat_template


def test_smollm2_cuts_digits_out_before_it_looks_for_words(smollm2):
    assert smollm2.tokenizer.tokenize("[\n    12") == ["[", "ĊĠĠĠĠ", "1", "2"]
    assert smollm2.tokenizer.tokenize("at ½") == ["at", "Ġ", "Â½"]


def test_the_tokenizer_survives_saving(smollm2, tmp_path):
    from transformers import AutoTokenizer

    smollm2.tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["", " x\n\n  12 <|im_start|>user\n", "çà €\t\t½"]
    assert again(texts)["input_ids"] == smollm2.tokenizer(texts)["input_ids"]
    assert (again.pad_token, again.chat_template) == ("<|im_end|>", smollm2.tokenizer.chat_template)


class Metadata(dict):
    path = "metadata of a test"


def bpe_metadata(tokenizer_json: dict, pre: str) -> Metadata:
    """The metadata that llama.cpp's converter writes for a byte-level BPE tokenizer."""
    vocab = dict(tokenizer_json["model"]["vocab"])
    added = {token["id"]: token for token in tokenizer_json["added_tokens"]}
    vocab |= {token["content"]: index for index, token in added.items()}
    tokens = sorted(vocab, key=vocab.get)
    types = [1 if i not in added else 3 if added[i]["special"] else 4 for i in range(len(tokens))]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer_json["model"]["merges"]]
    return Metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.token_type": types,
        }
    )


def test_a_qwen2_vocabulary_tokenises_as_the_upstream_files_do(toolrm_data):
    from transformers import AutoTokenizer

    directory = toolrm_data / "tokenizers" / "qwen2.5"
    upstream = AutoTokenizer.from_pretrained(directory)
    metadata = bpe_metadata(json.loads((directory / "tokenizer.json").read_text()), "qwen2")
    ours = build_tokenizer(metadata, {"max_position_embeddings": 8192})
    texts = [*PROBES, "e\u0301 <tool_call>{}</tool_call><|im_end|>\n", "\uff11\uff12"]
    assert [ours.encode(text) for text in texts] == [upstream.encode(text) for text in texts]


def test_llama3_words_hold_three_digits_and_whole_tokens_win():
    metadata = Metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.tokens": ["1", "2", "3", "4", "123", "ab", "a", "b", "!"],
            "tokenizer.ggml.merges": [],
        }
    )
    tokenizer = build_tokenizer(metadata, {"max_position_embeddings": 8})
    assert tokenizer.tokenize("1234") == ["123", "4"]
    assert tokenizer.tokenize("ab!") == ["ab", "!"]


# --- types ---------------------------------------------------------------------------------------

DEQUANTISED = [
    kind
    for kind in gguf.GGMLQuantizationType
    if kind in gguf.quants._type_traits or kind.name in ("F32", "F16")
]


def stored(kind: gguf.GGMLQuantizationType, rows: int, columns: int) -> np.ndarray:
    """Random weights as the file has them: quantised by `gguf` where it can, else random blocks."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(rows, columns)).astype(np.float32)
    try:
        return gguf.quants.quantize(weights, kind)
    except NotImplementedError:
        shape = gguf.quants.quant_shape_to_byte_shape((rows, columns), kind)
        # Below 0x38 no pair of bytes is a half-precision infinity or NaN.
        return rng.integers(0, 0x38, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", DEQUANTISED, ids=lambda kind: kind.name)
def test_every_type_that_gguf_dequantises_is_read_by_rows_as_whole(kind, tmp_path, monkeypatch):
    """All matrices in that type, of widths that fill its blocks; q and k rows back in order."""
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", 256)
    monkeypatch.setattr(sys.modules[__name__], "MLP", 256)
    heads, inner = HEADS * HEAD_DIM, {"self_attn.o_proj": HEADS * HEAD_DIM}
    weights = {}
    for name, tensor in tiny_weights(tied=False).items():
        columns = tensor.shape[-1]
        if tensor.ndim == 2 and not any(part in name for part in inner):
            weights[name] = stored(kind, tensor.shape[0], columns)
    path = write_tiny(tmp_path / "m.gguf", tied=False, stored={"kind": kind, "weights": weights})
    model = read_gguf(path)
    q = "model.layers.1.self_attn.q_proj.weight"
    for name, data in weights.items():
        spec = model.tensors.spec(name)
        expected = gguf.dequantize(data, kind).astype(np.float32)
        assert spec.shape == expected.shape == (data.shape[0], 256)
        whole = model.tensors[name]
        # The file keeps llama.cpp's order; what was put in is Hugging Face's.
        np.testing.assert_array_equal(whole, expected, err_msg=name)
        parts = [
            model.tensors.rows(name, i, min(i + 3, len(whole))) for i in range(0, len(whole), 3)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
        assert np.isfinite(whole).all()
    assert model.tensors.spec(q).shape == (heads, 256)


def test_a_type_that_gguf_cannot_dequantise_is_refused(tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_K
    name = "model.layers.0.mlp.down_proj.weight"
    shape = gguf.quants.quant_shape_to_byte_shape((WIDTH, 256), kind)
    weights = {name: np.zeros(shape, np.uint8)}
    path = write_tiny(tmp_path / "m.gguf", stored={"kind": kind, "weights": weights})
    with pytest.raises(GgufError, match=r"ffn_down.weight is stored as Q8_K, which the gguf pack"):
        read_gguf(path)


# --- bad files ----------------------------------------------------------------------------------


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(GgufError, match=r"x.gguf: not a GGUF file"):
        read_gguf(tmp_path / "x.gguf")
    with pytest.raises(GgufError, match=r"y.gguf: no such file"):
        read_gguf(tmp_path / "y.gguf")


@pytest.mark.parametrize("share", [0.0005, 0.01, 0.03, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_one_error(tmp_path, share):
    whole = write_tiny(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: max(5, int(share * len(whole)))])
    with pytest.raises(GgufError, match=r"truncated or damaged"):
        read_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "gemma3"}, r"architecture 'gemma3'; only 'llama'"),
        ({"experts": 8}, r"mixture of experts"),
        ({"scaling": gguf.RopeScalingType.YARN}, r"rope scaling by type 'yarn'"),
        ({"extra": ["rope_freqs.weight"]}, r"rope_freqs.weight \(Llama 3.1"),
        ({"extra": ["blk.0.attn_q.bias"]}, r"Not known: blk.0.attn_q.bias"),
        ({"drop": ["blk.1.ffn_up.weight"]}, r"Missing: blk.1.ffn_up.weight"),
        ({"pre": "tekken"}, r"pre-tokenizer 'tekken' is not supported.*'smollm'"),
        ({"tokenizer": "llama"}, r"tokenizer 'llama' .* is not supported"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(tmp_path, options, message):
    with pytest.raises(GgufError, match=message):
        read_gguf(write_tiny(tmp_path / "m.gguf", **options))


# --- parity with transformers' own reader ---------------------------------------------------------

PROBES = [
    "",
    " ",
    "\n",
    "\n\n\n x",
    "\t\t x \r\n y",
    "Don't I'll we'VE it's 'tis",
    "3.14159, -2e10 and 1,000,000; v1.2.3",
    "def f(x):\n    return {**x, 'a': [None]}  # done\n",
    "日本語のテキスト、中文字符。 한국어",
    "Привет, мир! Ελληνικά עברית العربية",
    "🚀 👩‍👩‍👧 🇫🇷 ✅",
    "naïve café Zoë \u00a0nbsp \u200bzero",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_start|>",
    "<|im_start <|im_end|>>x<|im_end|><repo_name>a<file_sep>",
    '{"name": "f", "arguments": {"x": 1, "y": ["a", "b"], "z": null}}',
    "https://example.org/a?b=c&d=%20e#f",
    "\u0000\u0001\u007f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "$$\\frac{a}{b} \\sum_i x_i$$",
    "ﬁ ﬂ Å Å ñ ñ",
]


def many_texts(model) -> list[str]:
    """Probes, BFCL prompts as JSON and as chats, and random strings over mixed alphabets."""
    tasks = (assets.bfcl_data_dir() / "BFCL_v4_live_multiple.json").read_text().splitlines()[:120]
    tasks += (assets.bfcl_data_dir() / "BFCL_v4_simple_python.json").read_text().splitlines()[:60]
    chats = [
        model.tokenizer.apply_chat_template(json.loads(task)["question"][0], tokenize=False)
        for task in tasks[::3]
    ]
    indented = [json.dumps(json.loads(task)["function"], indent=2) for task in tasks[::6]]
    rng = random.Random(0)
    alphabets = ["ab \n\t'", "01 .a\n", "éß漢字🙂 \u0301", "<|im_start|> end", '{}[]":, x\\']
    strings = [
        "".join(rng.choices(rng.choice(alphabets), k=rng.randrange(1, 60))) for _ in range(200)
    ]
    return PROBES + tasks + chats + indented + strings


def numbers_need_care(text: str) -> bool:
    """Where transformers' reader, which does not cut digits out, is known to differ."""
    numeric = [unicodedata.category(c).startswith("N") for c in text]
    return any(
        number and (not c.isascii() or (i > 1 and text[i - 2 : i].isspace()))
        for i, (c, number) in enumerate(zip(text, numeric, strict=True))
    )


@pytest.fixture(scope="module")
def reference_directory(smollm2_path, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference")
    try:
        (directory / "m.gguf").symlink_to(smollm2_path)
    except OSError:
        shutil.copy(smollm2_path, directory / "m.gguf")
    return directory


def assert_as_transformers_reads_it(model, folder) -> None:
    """Every tensor, and the config, of m.gguf in the folder."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf", dtype="float32")
    weights = reference.state_dict()
    tied = {"lm_head.weight"} if model.config["tie_word_embeddings"] else set()
    assert set(weights) - tied == set(model.tensors)
    for name in model.tensors:
        np.testing.assert_array_equal(model.tensors[name], weights[name].numpy(), err_msg=name)
    theirs = reference.config.to_dict()
    for name in set(model.config) - {"architectures", "rms_norm_eps"}:
        assert theirs[name] == model.config[name], name
    assert theirs["rms_norm_eps"] == pytest.approx(model.config["rms_norm_eps"], rel=1e-7)


@pytest.mark.torch
@pytest.mark.parametrize("tied", [True, False])
def test_a_file_reads_as_by_transformers_own_reader(tmp_path, monkeypatch, tied):
    monkeypatch.setitem(globals(), "HEAD_DIM", WIDTH // HEADS)  # it knows no other
    path = write_tiny(tmp_path / "m.gguf", tied=tied, bos=0)
    assert_as_transformers_reads_it(read_gguf(path), tmp_path)


@pytest.mark.slow
@pytest.mark.torch
def test_every_tensor_equals_transformers_own_reader(smollm2, reference_directory):
    assert_as_transformers_reads_it(smollm2, reference_directory)


@pytest.mark.torch
def test_token_ids_equal_transformers_own_reader(smollm2, reference_directory):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(reference_directory, gguf_file="m.gguf")
    texts = many_texts(smollm2)
    plain = [text for text in texts if not numbers_need_care(text)]
    careful = [text for text in texts if numbers_need_care(text)]
    assert len(plain) >= 300
    assert len(careful) >= 30
    for text in plain:
        assert smollm2.tokenizer.encode(text) == reference.encode(text), text
    # With the pre-tokenizer of the upstream tokenizer.json put in, the other texts agree too.
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for text in texts:
        assert smollm2.tokenizer.encode(text) == reference.encode(text), text
