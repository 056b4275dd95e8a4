"""Looks at what models and losses are given, and warnings of what can't be meant."""
