"""An open-loop load generator: queries go out on a fixed schedule, whatever comes back.

Arrivals are drawn beforehand from a seed, or read from a file, and latency counts from the
*scheduled* send time. So a server that stalls is charged for every query that should have been
sent meanwhile (no coordinated omission), and two servers under the same schedule get the same
queries at the same times.
"""

from parity_models.load.generator import offer_load
from parity_models.load.spec import LoadSpec

__all__ = ["LoadSpec", "offer_load"]
