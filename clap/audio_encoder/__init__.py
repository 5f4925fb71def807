"""Audio encoders, one file each: waveforms to one vector per clip."""
