"""Tests of keras_distill.privileged."""
