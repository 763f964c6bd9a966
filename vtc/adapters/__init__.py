"""Our compressors in other people's code: `hf` wraps a vision-language model of transformers."""
