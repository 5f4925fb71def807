"""Synthetic soundscapes: kinds of sound, plans of scenes, captions and rendering."""
