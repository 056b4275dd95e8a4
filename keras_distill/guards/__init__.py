"""Warnings about models, losses and data that can't be what the user meant."""
