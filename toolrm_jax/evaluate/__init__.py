"""Is a reward model any good for tool calling, and what does it buy? See docs/evaluate.md."""
