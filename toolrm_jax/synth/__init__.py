"""Preference pairs at scale: sources, obfuscation, answers, judging, selection, output."""
