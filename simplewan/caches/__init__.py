"""Content-addressed stores of VAE latents and text embeddings: `keys.Item`, `store.Store`, `fill.fill`.

`shelves.FolderShelf` (a store's default) and `remote.RemoteShelf` say where the shards lie; `house` tells what a store
takes, what of it nobody wants, and what is damaged. The room imports errors, events, and of the data room what files
need (places, atomic writes); what encodes is handed in. Nothing is imported here: `keys` and `groups` serve without
torch.
"""
