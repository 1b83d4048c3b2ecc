"""The training engine: knows steps, streams, ranks and files, and nothing of X-VLM itself."""
