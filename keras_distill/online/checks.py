"""Checks of peers, and of the data that they learn from."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill.shared_weights import shared_state


def check_peers(peers: Any, staleness: Any) -> None:
    """Raise an error unless these models can teach each other."""
    if not isinstance(peers, list | tuple) or not all(
        isinstance(peer, keras.Model) for peer in peers
    ):
        raise TypeError(
            f"`peers` must be a list of Keras models. Received: peers={peers!r}"
        )
    if len(peers) < 2:
        raise ValueError(
            "`peers` must hold two models or more, or there is nobody to learn from. "
            f"Received: peers={peers}"
        )
    if isinstance(staleness, bool) or not isinstance(staleness, int) or staleness < 0:
        raise ValueError(
            "`staleness` must be a whole number of steps, 0 or more. Received: "
            f"staleness={staleness!r}"
        )
    policies = {peer.dtype_policy.name for peer in peers}
    if len(policies) > 1:
        raise ValueError(
            "Peers must have one dtype policy, as one optimiser scales the loss of "
            f"all. Received: policies {sorted(policies)}"
        )
    unbuilt = [peer.name for peer in peers if not peer.built]
    if staleness and unbuilt:
        raise ValueError(
            "Peers must be built where copies of them teach, `staleness` > 0. Call "
            f"them on a batch before. Received: unbuilt peers {unbuilt}"
        )
    check_apart(peers)


def check_apart(peers: Sequence[keras.Model]) -> None:
    """Raise ValueError if one peer's training would change another."""
    for peer in peers:
        shared = [
            weight.path
            for other in peers
            if other is not peer
            for weight in shared_state(other, peer)
        ]
        if shared or sum(other is peer for other in peers) > 1:
            raise ValueError(
                "Peers must not share weights that train: each learns from what is "
                "different in the others. Freeze the shared layers, or give each peer "
                f"its own. Received: peer '{peer.name}', of whose weights others hold "
                f"{shared or 'all'}"
            )


def check_loss(loss: Any) -> None:
    """Raise ValueError if there is no label loss."""
    if loss is None:
        raise ValueError(
            "Peers need a label `loss`: with nothing but each other to learn from, "
            "they agree on nothing in particular. Received: loss=None"
        )


def check_labels(y: Any) -> None:
    """Raise ValueError if a batch has no labels."""
    if y is None:
        raise ValueError(
            "Peers learn from labels and from each other. Pass `y`, with a "
            "`label_mask` where some rows have none. Received: y=None"
        )
