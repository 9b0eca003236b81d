"""The paper's datasets, as tasks of one's own, and makers of data in the layouts of two of them.

Commands take them as `parity_models_lab.tasks:Cifar10`.
"""

from parity_models_lab.tasks.cifar import Cifar10, Cifar100
from parity_models_lab.tasks.localization import Localization
from parity_models_lab.tasks.make_boxes import make_boxes
from parity_models_lab.tasks.make_speech import make_speech
from parity_models_lab.tasks.speech import SmallSpeechCommands, SpeechCommands

__all__ = [
    "Cifar10",
    "Cifar100",
    "Localization",
    "SmallSpeechCommands",
    "SpeechCommands",
    "make_boxes",
    "make_speech",
]
