"""What a manifest says of itself to others: a Croissant description, a dataset card, a hub."""
