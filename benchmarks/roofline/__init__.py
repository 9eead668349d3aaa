"""What a bundle's graphs must cost on this machine, what they do cost, and which layers the difference lies in."""
