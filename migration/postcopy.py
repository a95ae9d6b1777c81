"""The source's side of post-copy: the guest runs at the destination and the pages follow.

One frame of pages at a time; the answer to each names the pages that the guest is waiting for, and
the next frame begins with one of those. With small frames that is the wait of one round trip, and
it needs nothing of the carrier but answers.

**The price**: from COMMIT until the last page has gone, the VM is in two pieces. If either side or
the line between them is lost then, the VM is lost. That is why pre-copy comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rayvisor.migration import frames, pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from rayvisor.migration.config import Codec
    from rayvisor.migration.conversation import Conversation
    from rayvisor.migration.sending import PageSender

CHUNK_BYTES: Final = 256 << 10


def serve(
    talk: Conversation,
    sender: PageSender,
    missing: bytes,
    codec: Codec | None,
    timeout_s: float,
    tell: Callable[[], None],
) -> None:
    """Send the pages of the bitmap `missing`, those first that are waited for.

    Raises:
        MigrationError: the destination or the line to it is lost, and with it the VM.
    """
    cursor = 0
    while pages.count(missing):
        after = sender.send_piece(missing, cursor, codec, CHUNK_BYTES)
        missing = pages.without(missing, pages.span(cursor, after, sender.pages))
        wanted = talk.reply(frames.Wanted, timeout_s, tell).pages
        waiting = (page for page in wanted if pages.contains(missing, page))
        cursor = next(waiting, after % sender.pages)
