"""Writes to the channels of a relayfs, and reads its timed channels.

``Channel`` writes messages and records, ``Handler`` connects the module ``logging`` to a channel, and ``read`` iterates
over the records of all CPUs in one order.
"""

from .channel import Channel
from .handler import Handler
from .reader import Record, read
from .record import DEBUG, ERROR, INFO, TRACE, WARN

__all__ = ["Channel", "Handler", "Record", "read", "ERROR", "WARN", "INFO", "DEBUG", "TRACE"]
__version__ = "0.1.0"
