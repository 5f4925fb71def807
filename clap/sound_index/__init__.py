"""Search a folder of recordings by text or by sound: its index of embeddings, and similarity over time."""
