"""A trained model handed on: exported to ONNX, and pushed to the Hugging Face hub with a model card."""
