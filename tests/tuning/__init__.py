"""Tests of keras_distill.tuning."""
