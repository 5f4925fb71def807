"""Synthetic soundscapes: kinds of sound, plans of scenes, captions, rendering and published layouts."""
