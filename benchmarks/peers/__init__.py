"""The engine beside what one would use instead: the same network, weights and tiles in other libraries and tilers."""
