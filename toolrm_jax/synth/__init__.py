"""Preference pairs from public data and a pool of models: python -m toolrm_jax.synth."""
