"""What an exported folder brings along for transformers; never imported by the project itself."""
