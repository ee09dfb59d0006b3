"""Outcome reward models for tool-calling LLMs, native to JAX."""
