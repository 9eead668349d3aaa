"""Edge inference for land-cover segmentation that survives a dead sensor.

Start at :mod:`engine.run` (the command line), then :mod:`engine.stream` (the pipeline).
"""
