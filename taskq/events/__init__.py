"""The life of every task as an ordered stream of events that can be deduplicated and replayed.

`schema` says what an event is, `bus` collects and batches them, `watermark` drops duplicates.
`docs/events.md` has the reference.
"""

from taskq.events.schema import Event, read_batch, read_cloudevent, to_cloudevent
from taskq.events.watermark import Watermark

__all__ = ["Event", "Watermark", "read_batch", "read_cloudevent", "to_cloudevent"]
