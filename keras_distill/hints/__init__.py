"""Hints: layers of the teacher that layers of the student are taught by."""
