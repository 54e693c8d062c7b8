"""What a run takes, found out before it begins: work, memory, time and disk.

Counts are exact for the rows of the first step, once their lengths are assumed. Lengths come from what the
model itself says in a short calibration; times from that and from an update on some of those rows; memory
from sizes, and from what the model keeps of a position for its backward pass, which is measured.
"""

from g2rpo_fast.forecast.forecast import Forecast, forecast

__all__ = ["Forecast", "forecast"]
