"""Maps and bundles as items of a SpatioTemporal Asset Catalog, https://stacspec.org."""
