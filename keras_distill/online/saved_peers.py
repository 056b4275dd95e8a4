"""Saved files of peers that train together."""

from typing import Any, Self

import keras

from keras_distill.online.peers_fit import PeersFit
from keras_distill.resuming import SavedCompilation


class SavedPeers(SavedCompilation, PeersFit):
    """Peers that are saved with their copies and their compiled state."""

    combine: str
    activation: str
    staleness: int

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments.

        Raises:
            ValueError: If peers share weights. Only weights that don't train can be
                shared.
        """
        weights = [weight for peer in self.peers for weight in peer.weights]
        if len({id(weight) for weight in weights}) < len(weights):
            raise ValueError(
                "Files of Keras can't hold peers that share weights. Use "
                "`save_weights`, or save each peer. Received: peers "
                f"{[peer.name for peer in self.peers]}"
            )
        return {
            **super().get_config(),
            "peers": [keras.saving.serialize_keras_object(peer) for peer in self.peers],
            "combine": self.combine,
            "activation": self.activation,
            "staleness": self.staleness,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        """Build the model from `get_config`'s result."""
        peers = [
            keras.saving.deserialize_keras_object(peer, custom_objects=custom_objects)
            for peer in config["peers"]
        ]
        return cls(**{**config, "peers": peers})

    def serving_model(self) -> keras.Model:
        """Raise an error: only one of the peers can be exported.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Peers that train together are models of their own, of which one is "
            "exported. Pass `mutual.peers[0]`; of a file "
            "`keras.saving.load_model(path).peers[0]`. Received: "
            f"{self.name!r} with the peers {[peer.name for peer in self.peers]}"
        )

    def serving_inputs(self, inputs: Any) -> Any:
        """Return `inputs`. A peer reads the keys that it declares."""
        return inputs
