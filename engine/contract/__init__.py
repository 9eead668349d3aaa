"""The words every room shares: sensors, bands, the bundle manifest and the exceptions.

Needs the standard library, numpy and msgspec alone, so that training, export and calibration can import
it without pulling the runtime in.
"""
