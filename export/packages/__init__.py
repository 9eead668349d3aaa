"""A bundle as others want it: a model repository of Triton, models for QGIS's Deepness, a folder for Hugging Face."""
