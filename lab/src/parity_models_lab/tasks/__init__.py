"""The paper's datasets, as tasks, and makers of data in the layouts of two of them.

Importing this registers the tasks of MNIST and diabetes; commands take the others as
`parity_models_lab.tasks:Cifar10`.
"""

from parity_models.tasks import TASKS
from parity_models_lab.tasks.cifar import Cifar10, Cifar100
from parity_models_lab.tasks.localization import Localization
from parity_models_lab.tasks.make_boxes import make_boxes
from parity_models_lab.tasks.make_speech import make_speech
from parity_models_lab.tasks.mnist import Diabetes, FashionMnist, FashionMnistPixels, Mnist
from parity_models_lab.tasks.speech import SmallSpeechCommands, SpeechCommands

TASKS.register(Mnist, FashionMnist, FashionMnistPixels, Diabetes)

__all__ = [
    "Cifar10",
    "Cifar100",
    "Diabetes",
    "FashionMnist",
    "FashionMnistPixels",
    "Localization",
    "Mnist",
    "SmallSpeechCommands",
    "SpeechCommands",
    "make_boxes",
    "make_speech",
]
