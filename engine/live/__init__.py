"""Frames that land in a folder while the flight lasts: watching, pairing, mapping, logging."""
