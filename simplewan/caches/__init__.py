"""Content-addressed stores of VAE latents and text embeddings: `keys.Item`, `store.Store`, `fill.fill`.

The room imports errors and events only (and torch, safetensors); what encodes is handed in. Nothing is imported here:
`keys` and `groups` serve without torch.
"""
