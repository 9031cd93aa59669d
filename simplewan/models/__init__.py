"""The models: loading, our forward, VAE, text encoder, adapters and their export. Knows nothing of training."""
