"""Sources, encodings, partitions, the split table and feature maps from federated sums."""
