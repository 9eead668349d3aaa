"""Polygons of a finished run's class map, for QGIS and other vector tools."""
