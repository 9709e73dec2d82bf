"""Arms that hand on frozen networks of the arm they start from, so that one name in `from` gives all of them."""

from collections.abc import Mapping

from torch import Tensor, nn

from lightning_modules.base import PaperModule
from lightning_modules.layers.published import load_strictly


class Carrier(PaperModule):
    """Hands on the frozen networks that an arm was given: exported under their own names, never trained."""

    def carried(self) -> dict[str, nn.Module]:
        """The networks by the first part of their weights' names."""
        raise NotImplementedError

    def export(self) -> dict[str, Tensor]:
        """The weights of the arm, and those that it carries."""
        found = super().export()
        for name, network in self.carried().items():
            found |= {f"{name}.{key}": x for key, x in network.state_dict().items()}
        return found

    def load_export(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what `export` gave."""
        load_strictly(self, self.take(weights), "exported weights")

    def take(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take over the carried networks' weights, and give back the others.

        Raises:
            ValueError: a network's weights are missing, or of another architecture.
        """
        rest = dict(weights)
        for name, network in self.carried().items():
            own = {key: rest.pop(key) for key in weights if key.startswith(f"{name}.")}
            if not own:
                raise ValueError(
                    f"the arm named by `from` has no weights under {name}.*: name one that has them, or a published "
                    f"model with {name}.hub."
                )
            load_strictly(network, {key.removeprefix(f"{name}."): x for key, x in own.items()}, f"the {name} of `from`")
        return rest
