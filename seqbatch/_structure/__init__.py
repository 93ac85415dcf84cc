"""Index arithmetic of sequences: lengths, and plans of where each row goes. It knows no features and no layers."""
