"""Backends: how a scenario's graph is executed.

:meth:`engine.backends.options.BackendOptions.open` is the only place that chooses one, and none is handed out before it
has reproduced the bundle's golden tile.
"""
