"""Datasets made on this machine, in the layouts of published ones, for where those are not."""

from parity_models.tasks.synthetic.boxes import make_boxes
from parity_models.tasks.synthetic.speech import make_speech

__all__ = ["make_boxes", "make_speech"]
