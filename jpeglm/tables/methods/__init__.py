"""The methods of completion tables, which are their rows.

Each method is given the same cut documents and gives back as many whole ones. The controls say what a distance is
worth: the model before its first step, and the prompt with something simple after it. A network can complete by the
plain sampling or, where the codec has a grammar, among its legal tokens.
"""

from jpeglm.tables.methods.base import Bench, Completed, Method
from jpeglm.tables.methods.flat import Flat
from jpeglm.tables.methods.last_frame import LastFrame
from jpeglm.tables.methods.networks import PRETRAINED, TRAINED, UNTRAINED
from jpeglm.tables.methods.random_bytes import RandomBytes
from jpeglm.tables.methods.training import TrainingMean, TrainingPicture

__all__ = ["REGISTRY", "Bench", "Completed", "Method", "networks", "title_of", "trained"]

# In the order of tables; a new method is one line here.
_METHODS: tuple[Method, ...] = (
    TRAINED,
    PRETRAINED,
    UNTRAINED,
    LastFrame(),
    RandomBytes(),
    Flat(),
    TrainingMean(),
    TrainingPicture(),
)
REGISTRY: dict[str, Method] = {method.name: method for method in _METHODS}


def networks() -> tuple[str, ...]:
    """The names of the methods that draw tokens."""
    return tuple(name for name, method in REGISTRY.items() if method.is_network)


def trained() -> tuple[str, ...]:
    """The names of the networks that the other methods are set beside."""
    return tuple(name for name, method in REGISTRY.items() if method.is_trained)


def title_of(row: str, grammar: bool) -> str:
    """What a row is called, by the sampling with the grammar or by the plain one."""
    title = REGISTRY[row].title
    return f"{title} with grammar" if grammar else title
