"""Many rasters: a list, its units, and who maps them; nothing here is needed to map one."""
