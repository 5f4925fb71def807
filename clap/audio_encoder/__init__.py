"""Audio encoders, one file each: waveforms in, one vector a clip out."""
