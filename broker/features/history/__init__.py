"""`history`: read stored events back without subscribing, page by page, from memory and from the stream.

`feature` is the request: what may be asked, how often, and the reply. `reading` reads a page: the ring first,
then what the index of the feed knows, then the stream.
"""
