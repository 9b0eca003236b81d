"""The paper's datasets, as tasks, and data made in place of two of them.

Importing this registers the tasks of MNIST and diabetes; commands take the others as
`parity_models_lab.tasks:Cifar10`.
"""

from parity_models.tasks import TASKS
from parity_models_lab.tasks.cifar import Cifar10
from parity_models_lab.tasks.localization import Localization, MadeBoxes
from parity_models_lab.tasks.mnist import Diabetes, FashionMnist, FashionMnistPixels, Mnist
from parity_models_lab.tasks.speech import MadeSpeech, SmallSpeechCommands, SpeechCommands

TASKS.register(Mnist, FashionMnist, FashionMnistPixels, Diabetes)

__all__ = [
    "Cifar10",
    "Diabetes",
    "FashionMnist",
    "FashionMnistPixels",
    "Localization",
    "MadeBoxes",
    "MadeSpeech",
    "Mnist",
    "SmallSpeechCommands",
    "SpeechCommands",
]
