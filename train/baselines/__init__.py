"""The two other methods of the paper's Table 1, adapted to two 2-D modalities."""
