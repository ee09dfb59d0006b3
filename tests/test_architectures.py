"""The table of public models against what is published of their weights."""

import pytest

from toolrm_jax.architectures import PUBLISHED, ArchitectureError, architecture

# Of the causal models' weights, embedding and output head included (their model cards).
PARAMETERS = {
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen/Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
}


@pytest.mark.parametrize("source", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters(source):
    config = architecture(source)
    heads = 1 if config.tied_embeddings else 2
    embeddings = heads * config.vocab_size * config.width
    rest = config.num_parameters - config.vocab_size * config.width - config.width
    assert embeddings + rest == PARAMETERS[source]


def test_a_model_that_is_neither_in_the_table_nor_here_is_an_error_that_lists_the_table():
    with pytest.raises(
        ArchitectureError, match=r"No model at '/absent'.*Qwen/Qwen2.5-14B-Instruct"
    ):
        architecture("/absent")
