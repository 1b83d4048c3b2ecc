"""From manifest rows to batches: rows, transforms, text, masking, order, loading."""
