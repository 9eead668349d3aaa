"""The live map: a page in the browser that shows a run while it goes on, and afterwards from its folder.

::

    the run                                     a process of its own, of low priority
    observer.Page  -- canvas.LiveCanvas (shared memory) -->  pixels.Frames       -->  web.app  -->  browsers
                   -- messages (a pipe)                 -->  flight.ShownFlight  -->

The run never waits: it writes finished pixels into memory that both processes share, and a line to a pipe that takes
what it has room for. Everything else, from pictures to slow browsers, is the other process's. Needs the extra ``view``.
"""
