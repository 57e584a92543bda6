"""What an exported graph is made of: geometry, NIfTI bytes, signatures, the model card."""
