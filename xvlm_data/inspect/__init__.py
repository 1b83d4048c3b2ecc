"""Looking at manifests: statistics, validation, and pictures with boxes drawn on them."""
