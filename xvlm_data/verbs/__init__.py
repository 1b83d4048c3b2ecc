"""What people do with manifests every day: look at, choose, join, part and compare them."""
