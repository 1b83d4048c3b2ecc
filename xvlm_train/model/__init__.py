"""X-VLM: image encoder, text encoder, cross-modal encoder and heads."""
