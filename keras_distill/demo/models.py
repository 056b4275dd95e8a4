"""The demo's two networks, which end in logits."""

import keras
from keras import layers

from keras_distill.demo.data import CLASSES, SHAPE


def teacher(seed: int) -> keras.Model:
    """Build a convolutional network of a size for models that needn't be served."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(SHAPE, name="image"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Dropout(0.3),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(CLASSES, name="logits"),
        ],
        name="teacher",
    )


def student(seed: int) -> keras.Model:
    """Build a network about 80 times smaller; a seed always gives the same weights."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input(SHAPE, name="image"),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(CLASSES, name="logits"),
        ],
        name="student",
    )
